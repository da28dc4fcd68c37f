# Stage 1: the narrow classifier, distilled with KD and NST.
_base_ = 'student_from_teacher_nst.py'

kd = dict(name='kd', loss=dict(type='kd_plugins.KDLoss', tau=4.0), student='head.fc', teacher='head.fc', weight=1.0)
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=_base_.teacher, terms=[_base_.nst, kd])]
