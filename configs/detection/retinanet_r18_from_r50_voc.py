# RetinaNet with a ResNet-18 from one with a ResNet-50, on VOC 2007 and 2012, by a method of methods_retinanet.py, or
# the sum of several:
#
#     METHOD=crosskd python tools/train.py configs/detection/retinanet_r18_from_r50_voc.py
_base_ = ['mmdet::pascal_voc/retinanet_r50_fpn_1x_voc0712.py', '../_base_/methods_retinanet.py']
from kd_plugins.config import terms_of

custom_imports = dict(imports=['kd_plugins'], allow_failed_imports=False)
default_hooks = dict(export=dict(type='kd_plugins.ExportHook'), reseed=dict(type='kd_plugins.ReseedHook'))
model = dict(
    backbone=dict(depth=18, init_cfg=dict(checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
variant = '{{$METHOD:pkd}}'
teacher = dict(
    config='mmdet::pascal_voc/retinanet_r50_fpn_1x_voc0712.py',
    checkpoint='https://mmassets.onedl.ai/mmdetection/v2.0/pascal_voc/retinanet_r50_fpn_1x_voc0712/'
    'retinanet_r50_fpn_1x_voc0712_20220320_222034-b30e6097.pth',
)
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms_of(_base_.methods, variant))]
