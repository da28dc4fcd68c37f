# The same detector from a backbone that learned from a teacher without labels, by METHOD.
#
#     METHOD=cosine python tools/train.py configs/voc_sample/from_teacher.py
_base_ = './finetuned.py'
from kd_plugins.config import trained

variant = '{{$METHOD:cosine}}'
name = variant
requires = [trained('configs/pretrain/resnet18-narrow_from_mobilenet-v2.py', variant)]
model = dict(backbone=dict(init_cfg=dict(checkpoint=requires[0]['checkpoint'])))
