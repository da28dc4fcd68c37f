# The same detector from the student distilled with KD and NST; prints the table of all three.
#
#     python tools/train.py configs/voc_sample/kd_nst.py
_base_ = 'baseline.py'
from kd_plugins.config import trained

name = 'KD+NST'
requires = [trained('configs/voc_sample/student_from_teacher_kd_nst.py')]
compare = dict(baseline='configs/voc_sample/baseline.py', NST='configs/voc_sample/nst.py')
model = dict(backbone=dict(init_cfg=dict(checkpoint=requires[0]['checkpoint'])))
