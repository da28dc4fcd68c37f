# RetinaNet with a ResNet-50 from one with a ResNet-101 (38.9 AP) by a method of methods_retinanet.py, or the sum of
# several:
#
#     METHOD=crosskd+pkd python tools/train.py configs/detection/retinanet_r50_from_r101.py
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', '../_base_/methods_retinanet.py']
from kd_plugins.config import terms_of

custom_imports = dict(imports=['kd_plugins'], allow_failed_imports=False)
default_hooks = dict(export=dict(type='kd_plugins.ExportHook'), reseed=dict(type='kd_plugins.ReseedHook'))
variant = '{{$METHOD:pkd}}'
teacher = dict(
    config='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
    checkpoint='https://mmassets.onedl.ai/mmdetection/v2.0/retinanet/retinanet_r101_fpn_2x_coco/'
    'retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth',
)
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms_of(_base_.methods, variant))]
