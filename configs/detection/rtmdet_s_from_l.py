# RTMDet-s from RTMDet-l (51.3 AP) by a method of methods_rtmdet.py, or the sum of several:
#
#     METHOD=cwd python tools/train.py configs/detection/rtmdet_s_from_l.py
_base_ = ['mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py', '../_base_/methods_rtmdet.py']
from kd_plugins.config import terms_of

custom_imports = dict(imports=['kd_plugins'], allow_failed_imports=False)
default_hooks = dict(export=dict(type='kd_plugins.ExportHook'), reseed=dict(type='kd_plugins.ReseedHook'))
variant = '{{$METHOD:pkd}}'
teacher = dict(
    config='mmdet::rtmdet/rtmdet_l_8xb32-300e_coco.py',
    checkpoint='https://mmassets.onedl.ai/mmdetection/v3.0/rtmdet/rtmdet_l_8xb32-300e_coco/'
    'rtmdet_l_8xb32-300e_coco_20220719_112030-5a0be7c4.pth',
)
# The pyramids have 128 and 256 channels.
terms = [dict(dict(adapter='auto'), **x) if x['student'] == 'neck' else x for x in terms_of(_base_.methods, variant)]
custom_hooks = [*_base_.custom_hooks, dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms)]
