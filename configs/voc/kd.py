# Faster R-CNN on VOC 2007 from a ResNet-18 distilled from a ResNet-101 with KD.
_base_ = 'baseline.py'
from kd_plugins.config import trained

name = 'KD'
requires = [trained('configs/imagenet/resnet18_from_resnet101_kd.py')]
model = dict(backbone=dict(init_cfg=dict(checkpoint=requires[0]['checkpoint'])))
