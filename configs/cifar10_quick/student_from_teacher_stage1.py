# The first of two stages: the hints alone, without the task. METHOD=fitnet (the default) or fsp, as published.
_base_ = './student_from_teacher.py'
from kd_plugins.config import terms_of

variant = '{{$METHOD:fitnet}}'
find_unused_parameters = True
custom_hooks = [dict(_base_.custom_hooks[0], terms=terms_of(_base_.methods, variant), task=False)]
