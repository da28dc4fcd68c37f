# ResNet-8 from two teachers, one of its family and one of another: for KD, as from the mean of their probabilities.
_base_ = ['./resnet8.py', '../_base_/methods.py']
from kd_plugins.config import terms_of, trained

variant = '{{$METHOD:kd_alpha}}'
teacher = [trained('configs/cifar10/resnet26.py'), trained('configs/cifar10/wrn-40-2.py')]
requires = teacher
methods = _base_.methods
methods.reviewkd[0].teacher = methods.reviewkd[0].student  # taps of both teachers
model = dict(head=dict(loss=dict(loss_weight=0.1 if 'kd_alpha' in variant else 1.0)))
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms_of(methods, variant))]
