# Faster R-CNN on VOC 2007 from a ResNet-18 trained on ImageNet without distillation.
_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/voc07.py',
    '../_base_/models/faster_rcnn_r18_fpn.py',
    '../_base_/schedules/voc_12e.py',
]
default_scope = 'mmdet'
name = 'baseline'
