# ResNet-18 from ResNet-101 by a method of methods_imagenet.py, or the sum of several:
#
#     METHOD=kd+at python tools/train.py configs/imagenet/resnet18_from_resnet101.py
_base_ = '../_base_/pairs/imagenet_resnet18_from_resnet101.py'
from kd_plugins.config import terms_of

variant = '{{$METHOD:kd}}'
custom_hooks = [
    dict(type='kd_plugins.DistillationHook', teacher=_base_.teacher, terms=terms_of(_base_.methods, variant))
]
