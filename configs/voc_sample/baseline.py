# Stage 2: a small Faster R-CNN on 600 images of VOC 2007, from the student trained without distillation. The sample
# is read from data/VOCdevkit/VOC2007, with the split that is found there.
_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/voc07_small.py',
    '../_base_/models/faster_rcnn_narrow.py',
    '../_base_/schedules/small_detector_12e.py',
]
from kd_plugins.config import trained

default_scope = 'mmdet'
name = 'baseline'
requires = [trained('configs/voc_sample/student.py')]
model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=requires[0]['checkpoint'], prefix='backbone.')),
    rpn_head=dict(anchor_generator=dict(scales=[4])),
)
default_hooks = dict(layout=dict(type='kd_plugins.ChannelsLastHook'))
