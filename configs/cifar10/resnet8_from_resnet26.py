# ResNet-8 from ResNet-26 by a method of methods.py, or the sum of several:
#
#     METHOD=kd+nst_poly python tools/train.py configs/cifar10/resnet8_from_resnet26.py
_base_ = ['./resnet8.py', '../_base_/methods.py']
from kd_plugins.config import terms_of, trained

variant = '{{$METHOD:kd}}'
teacher = trained('configs/cifar10/resnet26.py')
requires = [teacher]
model = dict(head=dict(loss=dict(loss_weight=0.1 if 'kd_alpha' in variant else 1.0)))
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms_of(_base_.methods, variant))]
