# The same detector from a backbone that learned the labels of fifty classes.
_base_ = './finetuned.py'
from kd_plugins.config import trained

name = 'from labels'
requires = [trained('configs/pretrain/resnet18-narrow.py')]
model = dict(backbone=dict(init_cfg=dict(checkpoint=requires[0]['checkpoint'])))
