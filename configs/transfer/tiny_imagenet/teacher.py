_base_ = './probe.py'
requires = [dict(config='configs/cifar100/wrn-40-2.py', checkpoint='work_dirs/cifar100/wrn-40-2/student.pth')]
model = dict(backbone=dict(depth=40, init_cfg=dict(checkpoint=requires[0]['checkpoint'])))
