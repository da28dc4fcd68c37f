# RetinaNet with a ResNet-50 from a Faster R-CNN with a ResNet-101 (39.8 AP) by a method of methods_detection.py, or
# the sum of several:
#
#     METHOD=nst_poly+pkd python tools/train.py configs/detection/retinanet_r50_from_faster-rcnn_r101.py
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', '../_base_/methods_detection.py']
from kd_plugins.config import terms_of

custom_imports = dict(imports=['kd_plugins'], allow_failed_imports=False)
default_hooks = dict(export=dict(type='kd_plugins.ExportHook'), reseed=dict(type='kd_plugins.ReseedHook'))
variant = '{{$METHOD:pkd}}'
teacher = dict(
    config='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py',
    checkpoint='https://mmassets.onedl.ai/mmdetection/v2.0/faster_rcnn/faster_rcnn_r101_fpn_2x_coco/'
    'faster_rcnn_r101_fpn_2x_coco_bbox_mAP-0.398_20200504_210455-1d2dac9c.pth',
)
# The student's levels have strides of 8 to 128 pixels, the teacher's of 4 to 64.
levels = dict(student_levels=[0, 1, 2, 3], teacher_levels=[1, 2, 3, 4])
terms = [dict(term, **levels) for term in terms_of(_base_.methods, variant)]
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms)]
