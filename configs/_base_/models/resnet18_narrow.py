# The classifier whose backbone faster_rcnn_narrow.py takes over.
_base_ = 'mmpretrain::_base_/models/resnet18.py'

model = dict(backbone=dict(stem_channels=16, base_channels=16), head=dict(in_channels=128, topk=1))
