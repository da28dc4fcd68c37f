_base_ = './probe.py'
requires = [dict(config='configs/cifar100/wrn-16-2.py', checkpoint='work_dirs/cifar100/wrn-16-2/student.pth')]
model = dict(backbone=dict(init_cfg=dict(checkpoint=requires[0]['checkpoint'])))
