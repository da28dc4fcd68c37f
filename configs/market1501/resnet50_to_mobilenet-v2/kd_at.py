_base_ = ['../../_base_/pairs/market1501_resnet50_mobilenet-v2.py', '../../_base_/methods_mobilenet.py']
custom_hooks = [
    dict(type='kd_plugins.DistillationHook', teacher=_base_.teacher, terms=[*_base_.methods.kd, *_base_.methods.at])
]
