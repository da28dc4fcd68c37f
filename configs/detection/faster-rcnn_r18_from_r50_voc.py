# Faster R-CNN with a ResNet-18 from one with a ResNet-50, on VOC 2007 and 2012, by a method of methods_detection.py,
# or the sum of several:
#
#     METHOD=nst_poly+pkd python tools/train.py configs/detection/faster-rcnn_r18_from_r50_voc.py
_base_ = ['mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py', '../_base_/methods_detection.py']
from kd_plugins.config import terms_of

custom_imports = dict(imports=['kd_plugins'], allow_failed_imports=False)
default_hooks = dict(export=dict(type='kd_plugins.ExportHook'), reseed=dict(type='kd_plugins.ReseedHook'))
model = dict(
    backbone=dict(depth=18, init_cfg=dict(checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
variant = '{{$METHOD:pkd}}'
teacher = dict(
    config='mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py',
    checkpoint='https://mmassets.onedl.ai/mmdetection/v2.0/pascal_voc/faster_rcnn_r50_fpn_1x_voc0712/'
    'faster_rcnn_r50_fpn_1x_voc0712_20220320_192712-54bef0f3.pth',
)
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms_of(_base_.methods, variant))]
