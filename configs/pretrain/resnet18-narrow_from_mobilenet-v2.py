# A backbone from a folder of images: the narrow ResNet-18 learns from a MobileNetV2 of ImageNet, without labels, by a
# method of methods_pretrain.py, or the sum of several:
#
#     METHOD=cosine+nst python tools/train.py configs/pretrain/resnet18-narrow_from_mobilenet-v2.py
#
# data/mobilenet_v2.pth is a MobileNetV2 with mmpretrain's keys.
_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/unlabelled_sample.py',
    '../_base_/models/resnet18_narrow.py',
    '../_base_/schedules/pretrain.py',
    '../_base_/methods_pretrain.py',
]
from kd_plugins.config import terms_of

variant = '{{$METHOD:cosine}}'
model = dict(neck=None, head=None)
default_hooks = dict(layout=dict(type='kd_plugins.ChannelsLastHook'), knn=_base_.knn)
teacher = dict(
    config=dict(type='mmpretrain.ImageClassifier', backbone=dict(type='MobileNetV2')),
    checkpoint='data/mobilenet_v2.pth',
    data_preprocessor=_base_.data_preprocessor,
    size=256,
    cache='data/teacher_cache',
)
distillation = dict(teacher=teacher, terms=terms_of(_base_.methods, variant), task='off')
custom_hooks = [dict(type='kd_plugins.DistillationHook', **distillation)]
