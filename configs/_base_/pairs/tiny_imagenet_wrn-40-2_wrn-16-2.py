_base_ = '../../tiny_imagenet/wrn-16-2.py'
teacher = dict(config='configs/tiny_imagenet/wrn-40-2.py', checkpoint='work_dirs/tiny_imagenet/wrn-40-2/student.pth')
requires = [teacher]
