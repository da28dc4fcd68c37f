# LD by mmdet's own LDHead, which runs the teacher itself, and beside it a method of methods_gfl.py, or the sum of
# several, from the same teacher:
#
#     METHOD=pkd python tools/train.py configs/detection/gfl_r50_from_r101_ld.py
_base_ = ['mmdet::ld/ld_r50-gflv1-r101_fpn_1x_coco.py', '../_base_/methods_gfl.py']
from kd_plugins.config import config_file, terms_of

custom_imports = dict(imports=['kd_plugins'], allow_failed_imports=False)
default_hooks = dict(export=dict(type='kd_plugins.ExportHook'), reseed=dict(type='kd_plugins.ReseedHook'))
variant = '{{$METHOD:pkd}}'
teacher = dict(config='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py', checkpoint=_base_.teacher_ckpt)
# The stock path leads to mmdet's repository; an installed mmdet has its configs elsewhere.
model = dict(teacher_config=config_file(teacher['config']))
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms_of(_base_.methods, variant))]
