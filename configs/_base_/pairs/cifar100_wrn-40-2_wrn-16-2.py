_base_ = '../../cifar100/wrn-16-2.py'
teacher = dict(config='configs/cifar100/wrn-40-2.py', checkpoint='work_dirs/cifar100/wrn-40-2/student.pth')
requires = [teacher]
