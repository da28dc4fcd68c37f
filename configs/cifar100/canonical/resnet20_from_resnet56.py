# ResNet-20 from ResNet-56 by a method of methods_canonical.py, or the sum of several:
#
#     METHOD=dkd python tools/train.py configs/cifar100/canonical/resnet20_from_resnet56.py
_base_ = ['./resnet20.py', '../../_base_/methods_canonical.py']
from kd_plugins.config import task_weight_of, terms_of, trained

variant = '{{$METHOD:kd}}'
teacher = trained('configs/cifar100/canonical/resnet56.py')
requires = [teacher]
methods = _base_.methods
methods.reviewkd[0].weight.value = [0.0, 0.6]
model = dict(head=dict(loss=dict(loss_weight=task_weight_of(_base_.task_weights, variant))))
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms_of(methods, variant))]
