# FSP as published: after the flows alone (stage 1, which is trained first), CE alone.
_base_ = '../_base_/pairs/cifar10_quick.py'
requires = [
    dict(config='configs/cifar10_quick/fsp_stage1.py', checkpoint='work_dirs/cifar10_quick/fsp_stage1/student.pth')
]
load_from = requires[0]['checkpoint']
