# A narrow ResNet-18 from scratch, on a part of Market-1501 with 400 identities to train: images as they are, 128 x 64
# pixels, a schedule for one core.
_base_ = ['../_base_/models/reid_resnet50.py', '../_base_/datasets/market1501.py', '../_base_/default_runtime.py']
data_preprocessor = dict(num_classes=400)
model = dict(
    backbone=dict(depth=18, stem_channels=16, base_channels=16, init_cfg=None),
    head=dict(num_classes=400, in_channels=128),
)

train_pipeline = [
    dict(type='kd_plugins.LoadImage'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='RandomCrop', crop_size=(128, 64), padding=5),
    dict(type='RandomErasing', erase_prob=0.5, fill_color=(103.53, 116.28, 123.675)),
    dict(type='PackInputs'),
]
test_pipeline = [_base_.test_pipeline[0], _base_.test_pipeline[-1]]
train_dataloader = dict(num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(rerank=dict())
test_evaluator = val_evaluator

max_epochs = 20
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(layout=dict(type='kd_plugins.ChannelsLastHook'))
optim_wrapper = dict(type='kd_plugins.BF16OptimWrapper', optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=2, T_max=max_epochs - 2, convert_to_iter_based=True),
]
