# The small GFL on 480 drawn scenes, without any data.
_base_ = ['../../_base_/default_runtime.py', '../../_base_/datasets/drawn_voc.py', '../../_base_/models/gfl_narrow.py']
default_scope = 'mmdet'
model = dict(bbox_head=dict(num_classes=8, anchor_generator=dict(octave_base_scale=3)))
data_root = 'data/drawn/detection/VOCdevkit/'
prepare = [dict(type='kd_plugins.datasets.drawing.draw_voc', root=data_root, train=320, val=160)]
train_dataloader = dict(dataset=dict(data_root=data_root, ann_file='VOC2007/ImageSets/Main/trainval.txt'))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader

max_epochs = 12
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(layout=dict(type='kd_plugins.ChannelsLastHook'))
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.02), clip_grad=dict(max_norm=10.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, T_max=max_epochs - 1, convert_to_iter_based=True),
]
