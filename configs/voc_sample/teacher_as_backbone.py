# The same detector with the teacher of configs/pretrain as its backbone: what its students are measured against. The
# maps of strides 8, 16 and 32 enter the pyramid.
_base_ = './finetuned.py'

name = 'the teacher as backbone'
requires = []
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
