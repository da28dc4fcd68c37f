# NST on drawn shapes, then Faster R-CNN on drawn scenes: the path of nst_voc.py in minutes, on a CPU, without data.
#
#     python tools/train.py configs/nst_voc_mini.py
_base_ = 'voc_mini/baseline.py'
from kd_plugins.config import trained

name = 'NST, no labels'
requires = [trained('configs/voc_mini/student_from_teacher_nst.py', _base_.variant)]
note = (
    'NST was ahead of both in ten of ten seeds, on one thread of a CPU: 0.259 ± 0.016, from scratch 0.198 ± 0.017, '
    'few labels 0.189 ± 0.018 (configs/voc_mini/README.md)'
)
beside = True
compare = {'from scratch': 'configs/voc_mini/scratch.py', 'few labels': 'configs/voc_mini/baseline.py'}
model = dict(backbone=dict(init_cfg=dict(checkpoint=requires[0]['checkpoint'])))
