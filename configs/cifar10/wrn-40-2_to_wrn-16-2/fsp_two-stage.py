# FSP as published: after the flows alone (stage 1, which is trained first), CE alone.
_base_ = '../../_base_/pairs/cifar10_wrn-40-2_wrn-16-2.py'
requires = [
    dict(
        config='configs/cifar10/wrn-40-2_to_wrn-16-2/fsp_stage1.py',
        checkpoint='work_dirs/cifar10/wrn-40-2_to_wrn-16-2/fsp_stage1/student.pth',
    )
]
load_from = requires[0]['checkpoint']
