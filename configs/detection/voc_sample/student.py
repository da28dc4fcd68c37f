# A small GFL with a narrow ResNet-18, from random weights, on 600 images of VOC 2007. The sample is read from
# data/VOCdevkit/VOC2007, with the split that is found there.
_base_ = [
    '../../_base_/default_runtime.py',
    '../../_base_/datasets/voc07_small.py',
    '../../_base_/models/gfl_narrow.py',
    '../../_base_/schedules/small_detector_12e.py',
]
default_scope = 'mmdet'
default_hooks = dict(layout=dict(type='kd_plugins.ChannelsLastHook'))
