# KD + RKD-DA, and a table of it beside the teacher, the student alone, and each loss alone.
#
#     python tools/train.py configs/market1501_sample/all.py
_base_ = ['../_base_/pairs/market1501_sample.py', '../_base_/methods_imagenet.py']
name = 'KD + RKD-DA'
custom_hooks = [
    dict(type='kd_plugins.DistillationHook', teacher=_base_.teacher, terms=[*_base_.methods.kd, *_base_.methods.rkd_da])
]
compare = {
    'teacher': 'configs/market1501_sample/teacher.py',
    'student alone': 'configs/market1501_sample/student.py',
    'KD': 'configs/market1501_sample/kd.py',
    'AT': 'configs/market1501_sample/at.py',
    'SP': 'configs/market1501_sample/sp.py',
    'RKD-DA': 'configs/market1501_sample/rkd-da.py',
    'NST poly': 'configs/market1501_sample/nst-poly.py',
}
