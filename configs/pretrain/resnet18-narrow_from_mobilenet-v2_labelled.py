# From labels and the teacher together, on the images that have labels:
#
#     METHOD=nst python tools/train.py configs/pretrain/resnet18-narrow_from_mobilenet-v2_labelled.py
_base_ = ['./resnet18-narrow.py', '../_base_/methods_pretrain_labelled.py']
from kd_plugins.config import terms_of

variant = '{{$METHOD:nst}}'
teacher = dict(
    config=dict(type='mmpretrain.ImageClassifier', backbone=dict(type='MobileNetV2')),
    checkpoint='data/mobilenet_v2.pth',
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
    size=256,
    cache='data/teacher_cache',
)
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms_of(_base_.methods, variant))]
