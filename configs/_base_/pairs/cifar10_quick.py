_base_ = '../../cifar10_quick/student.py'
teacher = dict(config='configs/cifar10_quick/teacher.py', checkpoint='work_dirs/cifar10_quick/teacher/student.pth')
requires = [teacher]
