_base_ = 'cifar10_batched.py'

# Mean and standard deviation as in cifar100.py.
data_preprocessor = dict(num_classes=100, mean=[129.3, 124.1, 112.4], std=[68.2, 65.4, 70.4])
train_dataloader = dict(dataset=dict(dataset=dict(type='kd_plugins.CIFAR100', data_root='data/cifar100')))
val_dataloader = dict(dataset=dict(dataset=dict(type='kd_plugins.CIFAR100', data_root='data/cifar100')))
test_dataloader = val_dataloader
