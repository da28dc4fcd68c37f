# NST on drawn shapes, then Faster R-CNN on drawn scenes: the path of nst_voc.py in minutes, on a CPU, without data.
#
#     python tools/train.py configs/nst_voc_mini.py
_base_ = 'voc_mini/baseline.py'
from kd_plugins.config import trained

name = 'NST'
requires = [trained('configs/voc_mini/student_from_teacher_nst.py')]
compare = dict(baseline='configs/voc_mini/baseline.py')
model = dict(backbone=dict(init_cfg=dict(checkpoint=requires[0]['checkpoint'])))
