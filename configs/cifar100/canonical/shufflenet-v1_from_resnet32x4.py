# ShuffleNetV1 from ResNet-32x4 by a method of methods_canonical.py, or the sum of several:
#
#     METHOD=dkd python tools/train.py configs/cifar100/canonical/shufflenet-v1_from_resnet32x4.py
_base_ = ['./shufflenet-v1.py', '../../_base_/methods_canonical.py']
from kd_plugins.config import task_weight_of, terms_of, trained

variant = '{{$METHOD:kd}}'
teacher = trained('configs/cifar100/canonical/resnet32x4.py')
requires = [teacher]
methods = _base_.methods
methods.dkd[0].loss.beta = 8.0
methods.pop('fsp')  # other channels
methods.reviewkd[0].weight.value = [0.0, 5.0]
model = dict(head=dict(loss=dict(loss_weight=task_weight_of(_base_.task_weights, variant))))
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms_of(methods, variant))]
