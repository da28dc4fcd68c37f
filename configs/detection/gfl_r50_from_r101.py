# GFL with a ResNet-50 from one with a ResNet-101 (44.7 AP) by a method of methods_gfl.py, or the sum of several:
#
#     METHOD=crosskd python tools/train.py configs/detection/gfl_r50_from_r101.py
_base_ = ['mmdet::gfl/gfl_r50_fpn_1x_coco.py', '../_base_/methods_gfl.py']
from kd_plugins.config import terms_of

custom_imports = dict(imports=['kd_plugins'], allow_failed_imports=False)
default_hooks = dict(export=dict(type='kd_plugins.ExportHook'), reseed=dict(type='kd_plugins.ReseedHook'))
variant = '{{$METHOD:pkd}}'
teacher = dict(
    config='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
    checkpoint='https://mmassets.onedl.ai/mmdetection/v2.0/gfl/gfl_r101_fpn_mstrain_2x_coco/'
    'gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847.pth',
)
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms_of(_base_.methods, variant))]
