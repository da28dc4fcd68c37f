_base_ = '../_base_/pairs/imagenet_resnet18_from_resnet101.py'
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=_base_.teacher, terms=_base_.methods.kd)]
