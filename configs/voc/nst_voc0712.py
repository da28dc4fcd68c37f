# nst_voc.py with the trainval sets of VOC 2007 and 2012 together; tested on 2007.
_base_ = 'baseline_voc0712.py'
from kd_plugins.config import trained

name = 'NST'
requires = [trained('configs/imagenet/resnet18_from_resnet101_nst_poly.py')]
compare = dict(baseline='configs/voc/baseline_voc0712.py')
model = dict(backbone=dict(init_cfg=dict(checkpoint=requires[0]['checkpoint'])))
