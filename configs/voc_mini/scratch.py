# Stage 2 from scratch: the same detector and schedule without a stage 1.
_base_ = 'baseline.py'

name = 'from scratch'
requires = []
model = dict(backbone=dict(init_cfg=None))
