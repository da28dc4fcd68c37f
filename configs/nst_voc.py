# NST on ImageNet (ResNet-101 to ResNet-18), then Faster R-CNN on VOC 2007 from the distilled student.
#
#     python tools/train.py configs/nst_voc.py
_base_ = 'voc/baseline.py'
from kd_plugins.config import trained

name = 'NST'
requires = [trained('configs/imagenet/resnet18_from_resnet101_nst_poly.py')]
compare = dict(baseline='configs/voc/baseline.py')
model = dict(backbone=dict(init_cfg=dict(checkpoint=requires[0]['checkpoint'])))
