_base_ = '../../cifar100/resnet8.py'
teacher = dict(config='configs/cifar100/resnet26.py', checkpoint='work_dirs/cifar100/resnet26/student.pth')
requires = [teacher]
