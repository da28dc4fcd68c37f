_base_ = '../_base_/pairs/market1501_resnet18_from_resnet50.py'
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=_base_.teacher, terms=_base_.methods.kd)]
