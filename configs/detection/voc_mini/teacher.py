# The teacher: the same detector with a backbone of twice the width, trained twice as long.
_base_ = './student.py'

model = dict(backbone=dict(stem_channels=32, base_channels=32), neck=dict(in_channels=[64, 128, 256]))
max_epochs = 24
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, T_max=max_epochs - 1, convert_to_iter_based=True),
]
