_base_ = '../../cifar10/wrn-16-2.py'
teacher = dict(config='configs/cifar10/wrn-40-2.py', checkpoint='work_dirs/cifar10/wrn-40-2/student.pth')
requires = [teacher]
