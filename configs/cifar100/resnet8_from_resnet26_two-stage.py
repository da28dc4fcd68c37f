# FitNet and FSP as published, METHOD=fitnet (the default) or fsp: first the hints alone, which
# resnet8_from_resnet26_stage1.py trains, then CE + KD after FitNet, CE alone after FSP.
_base_ = './resnet8_from_resnet26.py'
from kd_plugins.config import trained

variant = '{{$METHOD:fitnet}}'
first = trained('configs/cifar100/resnet8_from_resnet26_stage1.py', variant)
load_from = first['checkpoint']
if variant == 'fsp':
    requires, custom_hooks = [first], []
else:
    requires = [_base_.teacher, first]
    custom_hooks = [dict(_base_.custom_hooks[0], terms=_base_.methods.kd)]
