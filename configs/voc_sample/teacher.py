# The teacher: the student at twice the width.
_base_ = 'student.py'

model = dict(backbone=dict(stem_channels=32, base_channels=32), head=dict(in_channels=256))
