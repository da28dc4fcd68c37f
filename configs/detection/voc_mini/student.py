# The small GFL on 480 drawn scenes, without any data.
_base_ = [
    '../../_base_/default_runtime.py',
    '../../_base_/datasets/drawn_voc.py',
    '../../_base_/models/gfl_narrow.py',
    '../../_base_/schedules/small_detector_12e.py',
]
default_scope = 'mmdet'
model = dict(bbox_head=dict(num_classes=8, anchor_generator=dict(octave_base_scale=3)))
data_root = 'data/drawn/detection/VOCdevkit/'
prepare = [dict(type='kd_plugins.datasets.drawing.draw_voc', root=data_root, train=320, val=160)]
train_dataloader = dict(dataset=dict(data_root=data_root, ann_file='VOC2007/ImageSets/Main/trainval.txt'))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
default_hooks = dict(layout=dict(type='kd_plugins.ChannelsLastHook'))
