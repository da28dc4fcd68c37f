_base_ = '../../market1501_sample/student.py'
teacher = dict(
    config='configs/market1501_sample/teacher.py', checkpoint='work_dirs/market1501_sample/teacher/student.pth'
)
requires = [teacher]
