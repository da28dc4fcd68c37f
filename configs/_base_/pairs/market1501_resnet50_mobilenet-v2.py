_base_ = '../../market1501/mobilenet-v2.py'
teacher = dict(config='configs/market1501/resnet50.py', checkpoint='work_dirs/market1501/resnet50/student.pth')
requires = [teacher]
