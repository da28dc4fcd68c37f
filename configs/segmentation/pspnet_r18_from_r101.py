# PSPNet with a ResNet-18 from one with a ResNet-101 (79.76 mIoU) on Cityscapes by a method of
# methods_segmentation.py, or the sum of several:
#
#     METHOD=cwd python tools/train.py configs/segmentation/pspnet_r18_from_r101.py
_base_ = ['mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py', '../_base_/methods_segmentation.py']
from kd_plugins.config import terms_of

custom_imports = dict(imports=['kd_plugins'], allow_failed_imports=False)
default_hooks = dict(export=dict(type='kd_plugins.ExportHook'), reseed=dict(type='kd_plugins.ReseedHook'))
variant = '{{$METHOD:cwd}}'
teacher = dict(
    config='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
    checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_80k_cityscapes/'
    'pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth',
)
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms_of(_base_.methods, variant))]
