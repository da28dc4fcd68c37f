_base_ = ['../_base_/pairs/imagenet_resnet34_resnet18.py', '../_base_/methods_imagenet.py']
custom_hooks = [
    dict(type='kd_plugins.DistillationHook', teacher=_base_.teacher, terms=_base_.methods.kd + _base_.methods.nst_poly)
]
