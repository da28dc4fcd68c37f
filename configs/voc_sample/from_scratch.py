# The same detector from random weights: nothing is frozen, and BatchNorm measures its own statistics.
_base_ = './baseline.py'

name = 'from scratch'
requires = []
model = dict(backbone=dict(init_cfg=None, frozen_stages=-1, norm_eval=False))
