# A small GFL with a narrow ResNet-18, from random weights, on 600 images of VOC 2007. The sample is read from
# data/VOCdevkit/VOC2007, with the split that is found there.
_base_ = ['../../_base_/default_runtime.py', '../../_base_/datasets/voc07.py', '../../_base_/models/gfl_narrow.py']
default_scope = 'mmdet'

scale = (240, 160)
train_pipeline = _base_.train_pipeline
train_pipeline[2]['scale'] = scale
test_pipeline = _base_.test_pipeline
test_pipeline[1]['scale'] = scale
train_dataloader = dict(batch_size=8, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=20, dataset=dict(pipeline=test_pipeline))
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
