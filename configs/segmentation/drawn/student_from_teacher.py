# The small PSPNet from its teacher, by a method of methods_segmentation.py, or the sum of several:
#
#     METHOD=cwd+nst_poly python tools/train.py configs/segmentation/drawn/student_from_teacher.py
_base_ = ['./student.py', '../../_base_/methods_segmentation.py']
from kd_plugins.config import terms_of, trained

variant = '{{$METHOD:cwd}}'
teacher = trained('configs/segmentation/drawn/teacher.py')
requires = [teacher]
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms_of(_base_.methods, variant))]
