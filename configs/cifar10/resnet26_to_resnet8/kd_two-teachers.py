# KD from two teachers, one of the student's family and one of another: as from the mean of their probabilities.
_base_ = ['../../_base_/pairs/cifar10_resnet26_resnet8.py', '../../_base_/methods.py']
requires = [
    _base_.teacher,
    dict(config='configs/cifar10/wrn-40-2.py', checkpoint='work_dirs/cifar10/wrn-40-2/student.pth'),
]
model = dict(head=dict(loss=dict(loss_weight=0.1)))
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=requires, terms=_base_.methods.kd_alpha)]
