_base_ = 'cifar10.py'

# Mean and standard deviation of the pixels of the training set, RGB, as in szagoruyko/attention-transfer.
data_preprocessor = dict(num_classes=100, mean=[129.3, 124.1, 112.4], std=[68.2, 65.4, 70.4])
train_dataloader = dict(dataset=dict(type='kd_plugins.CIFAR100', data_root='data/cifar100'))
val_dataloader = dict(dataset=dict(type='kd_plugins.CIFAR100', data_root='data/cifar100'))
test_dataloader = val_dataloader
