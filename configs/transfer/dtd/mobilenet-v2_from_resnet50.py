# MobileNetV2 from ResNet-50 by a method of methods_mobilenet.py, or the sum of several:
#
#     METHOD=sp DTD_SPLIT=1 python tools/train.py configs/transfer/dtd/mobilenet-v2_from_resnet50.py
_base_ = ['./mobilenet-v2.py', '../../_base_/methods_mobilenet.py']
from kd_plugins.config import terms_of, trained

method = '{{$METHOD:kd}}'
variant = f'{_base_.variant}/{method}'
# Of the same split: a teacher of another one has seen images of this one's test part.
teacher = trained('configs/transfer/dtd/resnet50.py', _base_.variant)
requires = [teacher]
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms_of(_base_.methods, method))]
