# WRN-16-2 from WRN-40-2 by a method of methods_canonical_wrn.py, or the sum of several:
#
#     METHOD=dkd python tools/train.py configs/cifar100/canonical/wrn-16-2_from_wrn-40-2.py
_base_ = ['./wrn-16-2.py', '../../_base_/methods_canonical_wrn.py']
from kd_plugins.config import task_weight_of, terms_of, trained

variant = '{{$METHOD:kd}}'
teacher = trained('configs/cifar100/canonical/wrn-40-2.py')
requires = [teacher]
model = dict(head=dict(loss=dict(loss_weight=task_weight_of(_base_.task_weights, variant))))
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms_of(_base_.methods, variant))]
