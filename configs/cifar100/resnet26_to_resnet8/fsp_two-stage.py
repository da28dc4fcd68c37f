# FSP as published: after the flows alone (stage 1, which is trained first), CE alone.
_base_ = '../../_base_/pairs/cifar100_resnet26_resnet8.py'
requires = [
    dict(
        config='configs/cifar100/resnet26_to_resnet8/fsp_stage1.py',
        checkpoint='work_dirs/cifar100/resnet26_to_resnet8/fsp_stage1/student.pth',
    )
]
load_from = requires[0]['checkpoint']
