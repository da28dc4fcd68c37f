# KD + NST, and a table of it beside the teacher, the student alone, and each loss alone.
_base_ = ['../_base_/pairs/cifar10_quick.py', '../_base_/methods.py']
name = 'KD + NST (poly)'
custom_hooks = [
    dict(
        type='kd_plugins.DistillationHook', teacher=_base_.teacher, terms=[*_base_.methods.kd, *_base_.methods.nst_poly]
    )
]
compare = {
    'teacher': 'configs/cifar10_quick/teacher.py',
    'student alone': 'configs/cifar10_quick/student.py',
    'KD': 'configs/cifar10_quick/kd.py',
    'FitNet': 'configs/cifar10_quick/fitnet.py',
    'AT': 'configs/cifar10_quick/at.py',
    'FSP': 'configs/cifar10_quick/fsp.py',
    'SP': 'configs/cifar10_quick/sp.py',
    'RKD-D': 'configs/cifar10_quick/rkd-d.py',
    'RKD-A': 'configs/cifar10_quick/rkd-a.py',
    'RKD-DA': 'configs/cifar10_quick/rkd-da.py',
    'NST linear': 'configs/cifar10_quick/nst-linear.py',
    'NST poly': 'configs/cifar10_quick/nst-poly.py',
    'NST Gaussian': 'configs/cifar10_quick/nst-gaussian.py',
}
