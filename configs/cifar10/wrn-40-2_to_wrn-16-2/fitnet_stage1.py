# Stage 1 of FitNet as published: the hints alone, see fitnet_two-stage.py.
_base_ = ['../../_base_/pairs/cifar10_wrn-40-2_wrn-16-2.py', '../../_base_/methods_wrn.py']
find_unused_parameters = True
custom_hooks = [
    dict(type='kd_plugins.DistillationHook', teacher=_base_.teacher, terms=_base_.methods.fitnet, task=False)
]
