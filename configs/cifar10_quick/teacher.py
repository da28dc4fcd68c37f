_base_ = './student.py'
model = dict(backbone=dict(depth=20))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, end=8, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=8, val_interval=8)
train_dataloader = dict(dataset=dict(indices=None))
