# NST on drawn shapes, then Faster R-CNN on drawn scenes: the path of nst_voc.py in minutes, on a CPU, without data.
#
#     python tools/train.py configs/nst_voc_mini.py
_base_ = 'voc_mini/baseline.py'

name = 'NST'
requires = [dict(config='configs/voc_mini/student_nst.py', checkpoint='work_dirs/voc_mini/student_nst/student.pth')]
compare = dict(baseline='configs/voc_mini/baseline.py')
model = dict(backbone=dict(init_cfg=dict(checkpoint=requires[0]['checkpoint'])))
