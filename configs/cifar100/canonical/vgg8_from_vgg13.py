# VGG-8 from VGG-13 by a method of methods_canonical_vgg.py, or the sum of several:
#
#     METHOD=dkd python tools/train.py configs/cifar100/canonical/vgg8_from_vgg13.py
_base_ = ['./vgg8.py', '../../_base_/methods_canonical_vgg.py']
from kd_plugins.config import task_weight_of, terms_of, trained

variant = '{{$METHOD:kd}}'
teacher = trained('configs/cifar100/canonical/vgg13.py')
requires = [teacher]
methods = _base_.methods
methods.dkd[0].loss.beta = 6.0
methods.lskd[0].loss.tau = 3.0
model = dict(head=dict(loss=dict(loss_weight=task_weight_of(_base_.task_weights, variant))))
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms_of(methods, variant))]
