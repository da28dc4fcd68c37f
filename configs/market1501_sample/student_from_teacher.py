# The student from the teacher by a method of methods_imagenet.py, or the sum of several, in a table beside the teacher
# and the student alone:
#
#     METHOD=kd+rkd_da python tools/train.py configs/market1501_sample/student_from_teacher.py
_base_ = ['./student.py', '../_base_/methods_imagenet.py']
from kd_plugins.config import terms_of, trained

variant = '{{$METHOD:kd}}'
name = variant
teacher = trained('configs/market1501_sample/teacher.py')
requires = [teacher]
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms_of(_base_.methods, variant))]
compare = {'teacher': 'configs/market1501_sample/teacher.py', 'student alone': 'configs/market1501_sample/student.py'}
