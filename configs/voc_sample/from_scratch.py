# The same detector from random weights: nothing is frozen, all of it learns at the full rate, and BatchNorm measures
# its own statistics.
_base_ = './finetuned.py'

name = 'from scratch'
requires = []
model = dict(backbone=dict(init_cfg=None, frozen_stages=-1, norm_eval=False))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=1.0))))
