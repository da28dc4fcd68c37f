_base_ = './probe.py'
from kd_plugins.config import trained

requires = [trained('configs/cifar100/wrn-16-2.py')]
model = dict(backbone=dict(init_cfg=dict(checkpoint=requires[0]['checkpoint'])))
