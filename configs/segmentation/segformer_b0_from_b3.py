# SegFormer-B0 from SegFormer-B3 (47.82 mIoU) on ADE20K by a method of methods_segformer.py, or the sum of several:
#
#     METHOD=cwd python tools/train.py configs/segmentation/segformer_b0_from_b3.py
_base_ = ['mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', '../_base_/methods_segformer.py']
from kd_plugins.config import terms_of

custom_imports = dict(imports=['kd_plugins'], allow_failed_imports=False)
default_hooks = dict(export=dict(type='kd_plugins.ExportHook'), reseed=dict(type='kd_plugins.ReseedHook'))
variant = '{{$METHOD:cwd}}'
teacher = dict(
    config='mmseg::segformer/segformer_mit-b3_8xb2-160k_ade20k-512x512.py',
    checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/segformer/segformer_mit-b3_512x512_160k_ade20k/'
    'segformer_mit-b3_512x512_160k_ade20k_20210726_081410-962b98d2.pth',
)
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms_of(_base_.methods, variant))]
