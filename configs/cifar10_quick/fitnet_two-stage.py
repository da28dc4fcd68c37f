# FitNet as published: after the hints alone (stage 1, which is trained first), CE + KD on the whole network.
_base_ = ['../_base_/pairs/cifar10_quick.py', '../_base_/methods.py']
requires = [
    _base_.teacher,
    dict(
        config='configs/cifar10_quick/fitnet_stage1.py', checkpoint='work_dirs/cifar10_quick/fitnet_stage1/student.pth'
    ),
]
load_from = requires[1]['checkpoint']
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=_base_.teacher, terms=_base_.methods.kd)]
