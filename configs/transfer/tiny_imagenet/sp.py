_base_ = './probe.py'
requires = [
    dict(
        config='configs/cifar100/wrn-40-2_to_wrn-16-2/sp.py',
        checkpoint='work_dirs/cifar100/wrn-40-2_to_wrn-16-2/sp/student.pth',
    )
]
model = dict(backbone=dict(init_cfg=dict(checkpoint=requires[0]['checkpoint'])))
