# ResNet-32 from ResNet-110 by a method of methods_canonical.py, or the sum of several:
#
#     METHOD=dkd python tools/train.py configs/cifar100/canonical/resnet32_from_resnet110.py
_base_ = ['./resnet32.py', '../../_base_/methods_canonical.py']
from kd_plugins.config import task_weight_of, terms_of, trained

variant = '{{$METHOD:kd}}'
teacher = trained('configs/cifar100/canonical/resnet110.py')
requires = [teacher]
model = dict(head=dict(loss=dict(loss_weight=task_weight_of(_base_.task_weights, variant))))
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms_of(_base_.methods, variant))]
