# ResNet-8 from two teachers, one of its family and one of another: for KD, as from the mean of their probabilities.
_base_ = ['./resnet8.py', '../_base_/methods.py']
from kd_plugins.config import task_weight_of, terms_of, trained

variant = '{{$METHOD:kd_alpha}}'
teacher = [trained('configs/cifar10/resnet26.py'), trained('configs/cifar10/wrn-40-2.py')]
requires = teacher
methods = _base_.methods
methods.reviewkd[0].teacher = methods.reviewkd[0].student  # taps of both teachers
model = dict(head=dict(loss=dict(loss_weight=task_weight_of(_base_.task_weights, variant))))
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms_of(methods, variant))]
