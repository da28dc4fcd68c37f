# FSP as published: after the flows alone (stage 1, which is trained first), CE alone.
_base_ = '../../_base_/pairs/cifar10_resnet26_resnet8.py'
requires = [
    dict(
        config='configs/cifar10/resnet26_to_resnet8/fsp_stage1.py',
        checkpoint='work_dirs/cifar10/resnet26_to_resnet8/fsp_stage1/student.pth',
    )
]
load_from = requires[0]['checkpoint']
