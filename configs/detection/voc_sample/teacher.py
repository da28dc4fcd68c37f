# The teacher: the same detector with a MobileNetV2 that has learnt ImageNet.
_base_ = './student.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.MobileNetV2',
        out_indices=(2, 4, 7),
        frozen_stages=0,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='data/mobilenet_v2.pth', prefix='backbone.'),
    ),
    neck=dict(in_channels=[32, 96, 1280]),
)
