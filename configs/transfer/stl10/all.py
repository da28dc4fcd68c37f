# The student of KD + NST, and a table of it beside the teacher, the student alone and those of single methods.
_base_ = './probe.py'
name = 'KD + NST (poly)'
requires = [
    dict(
        config='configs/cifar100/wrn-40-2_to_wrn-16-2/kd_nst.py',
        checkpoint='work_dirs/cifar100/wrn-40-2_to_wrn-16-2/kd_nst/student.pth',
    )
]
model = dict(backbone=dict(init_cfg=dict(checkpoint=requires[0]['checkpoint'])))
compare = {
    'teacher': 'configs/transfer/stl10/teacher.py',
    'student alone': 'configs/transfer/stl10/baseline.py',
    'KD': 'configs/transfer/stl10/kd.py',
    'SP': 'configs/transfer/stl10/sp.py',
    'NST poly': 'configs/transfer/stl10/nst-poly.py',
}
