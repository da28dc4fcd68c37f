# Trained as the other methods of configs/cifar10, for comparison; cifar100/dml/resnet32.py has the paper's training.
_base_ = '../wrn-40-2.py'
model = dict(_delete_=True, type='kd_plugins.MutualLearning', student=_base_.model)
