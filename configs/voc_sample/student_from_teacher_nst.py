# Stage 1: the narrow classifier, distilled with NST.
_base_ = 'student.py'
from kd_plugins.config import trained

teacher = trained('configs/voc_sample/teacher.py')
requires = [teacher]
nst = dict(
    name='nst',
    loss=dict(type='kd_plugins.NSTLoss', kernel='poly'),
    student=['backbone.layer3', 'backbone.layer4'],
    teacher=['backbone.layer3', 'backbone.layer4'],
    weight=25.0,
)
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=[nst])]
