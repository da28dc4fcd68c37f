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
    'teacher': 'configs/transfer/tiny_imagenet/teacher.py',
    'student alone': 'configs/transfer/tiny_imagenet/baseline.py',
    'KD': 'configs/transfer/tiny_imagenet/kd.py',
    'SP': 'configs/transfer/tiny_imagenet/sp.py',
    'NST poly': 'configs/transfer/tiny_imagenet/nst-poly.py',
}
