# The same detector from the student distilled with NST.
_base_ = 'baseline.py'

name = 'NST'
requires = [dict(config='configs/voc_sample/student_nst.py', checkpoint='work_dirs/voc_sample/student_nst/student.pth')]
model = dict(backbone=dict(init_cfg=dict(checkpoint=requires[0]['checkpoint'])))
