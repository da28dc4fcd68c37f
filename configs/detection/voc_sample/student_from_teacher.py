# The small GFL from its teacher, by a method of methods_gfl_narrow.py, or the sum of several:
#
#     METHOD=nst_poly+pkd python tools/train.py configs/detection/voc_sample/student_from_teacher.py
_base_ = ['./student.py', '../../_base_/methods_gfl_narrow.py']
from kd_plugins.config import terms_of, trained

variant = '{{$METHOD:pkd}}'
teacher = trained('configs/detection/voc_sample/teacher.py')
requires = [teacher]
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms_of(_base_.methods, variant))]
