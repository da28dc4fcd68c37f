# ResNet-18 from ResNet-50 by a method of methods_imagenet.py, or the sum of several:
#
#     METHOD=kd+at python tools/train.py configs/market1501/resnet18_from_resnet50.py
_base_ = '../_base_/pairs/market1501_resnet18_from_resnet50.py'
from kd_plugins.config import terms_of

variant = '{{$METHOD:kd}}'
custom_hooks = [
    dict(type='kd_plugins.DistillationHook', teacher=_base_.teacher, terms=terms_of(_base_.methods, variant))
]
