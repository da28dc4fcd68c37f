# Trained as the other methods of configs/cifar100, for comparison; the paper's training is that of resnet32.py.
_base_ = '../resnet20.py'
model = dict(_delete_=True, type='kd_plugins.MutualLearning', student=_base_.model)
