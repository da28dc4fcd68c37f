# ResNet-8 from ResNet-26 by a method of methods.py, or the sum of several:
#
#     METHOD=kd+nst_poly python tools/train.py configs/cifar10/resnet8_from_resnet26.py
_base_ = ['./resnet8.py', '../_base_/methods.py']
from kd_plugins.config import task_weight_of, terms_of, trained

variant = '{{$METHOD:kd}}'
teacher = trained('configs/cifar10/resnet26.py')
requires = [teacher]
model = dict(head=dict(loss=dict(loss_weight=task_weight_of(_base_.task_weights, variant))))
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms_of(_base_.methods, variant))]
