# The same detector from a backbone that learned from labels and the teacher together, by METHOD.
#
#     METHOD=nst python tools/train.py configs/voc_sample/from_labels_and_teacher.py
_base_ = './finetuned.py'
from kd_plugins.config import trained

variant = '{{$METHOD:nst}}'
name = f'labels+{variant}'
requires = [trained('configs/pretrain/resnet18-narrow_from_mobilenet-v2_labelled.py', variant)]
model = dict(backbone=dict(init_cfg=dict(checkpoint=requires[0]['checkpoint'])))
