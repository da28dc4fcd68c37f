# The same detector from the student distilled with NST.
_base_ = 'baseline.py'
from kd_plugins.config import trained

name = 'NST'
requires = [trained('configs/voc_sample/student_from_teacher_nst.py')]
model = dict(backbone=dict(init_cfg=dict(checkpoint=requires[0]['checkpoint'])))
