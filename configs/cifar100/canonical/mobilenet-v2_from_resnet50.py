# MobileNetV2 from ResNet-50 by a method of methods_canonical_mobilenet.py, or the sum of several:
#
#     METHOD=dkd python tools/train.py configs/cifar100/canonical/mobilenet-v2_from_resnet50.py
_base_ = ['./mobilenet-v2.py', '../../_base_/methods_canonical_mobilenet.py']
from kd_plugins.config import task_weight_of, terms_of, trained

variant = '{{$METHOD:kd}}'
teacher = trained('configs/cifar100/canonical/resnet50.py')
requires = [teacher]
methods = _base_.methods
methods.dkd[0].loss.beta = 8.0
methods.lskd[0].loss.tau, methods.lskd[0].weight = 3.0, 1.0
model = dict(head=dict(loss=dict(loss_weight=task_weight_of(_base_.task_weights, variant))))
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms_of(methods, variant))]
