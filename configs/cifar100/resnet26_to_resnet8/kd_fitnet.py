_base_ = ['../../_base_/pairs/cifar100_resnet26_resnet8.py', '../../_base_/methods.py']
custom_hooks = [
    dict(type='kd_plugins.DistillationHook', teacher=_base_.teacher, terms=_base_.methods.kd + _base_.methods.fitnet)
]
