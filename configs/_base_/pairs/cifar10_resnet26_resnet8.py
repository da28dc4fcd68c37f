_base_ = '../../cifar10/resnet8.py'
teacher = dict(config='configs/cifar10/resnet26.py', checkpoint='work_dirs/cifar10/resnet26/student.pth')
requires = [teacher]
