# The same detector from the student distilled with KD and NST; prints the table of all three.
#
#     python tools/train.py configs/voc_sample/kd_nst.py
_base_ = 'baseline.py'

name = 'KD+NST'
requires = [
    dict(config='configs/voc_sample/student_kd_nst.py', checkpoint='work_dirs/voc_sample/student_kd_nst/student.pth')
]
compare = dict(baseline='configs/voc_sample/baseline.py', NST='configs/voc_sample/nst.py')
model = dict(backbone=dict(init_cfg=dict(checkpoint=requires[0]['checkpoint'])))
