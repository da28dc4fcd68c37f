# FCOS with a ResNet-50 from one with a ResNet-101 (40.8 AP) by a method of methods_fcos.py, or the sum of several:
#
#     METHOD=crosskd python tools/train.py configs/detection/fcos_r50_from_r101.py
_base_ = ['mmdet::fcos/fcos_r50-caffe_fpn_gn-head_ms-640-800-2x_coco.py', '../_base_/methods_fcos.py']
from kd_plugins.config import terms_of

custom_imports = dict(imports=['kd_plugins'], allow_failed_imports=False)
default_hooks = dict(export=dict(type='kd_plugins.ExportHook'), reseed=dict(type='kd_plugins.ReseedHook'))
variant = '{{$METHOD:pkd}}'
teacher = dict(
    config='mmdet::fcos/fcos_r101-caffe_fpn_gn-head_ms-640-800-2x_coco.py',
    checkpoint='https://mmassets.onedl.ai/mmdetection/v2.0/fcos/fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco/'
    'fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco-511424d6.pth',
)
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms_of(_base_.methods, variant))]
