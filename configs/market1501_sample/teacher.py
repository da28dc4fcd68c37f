# The student at twice the width, for longer.
_base_ = './student.py'
model = dict(backbone=dict(stem_channels=32, base_channels=32), head=dict(in_channels=256))
max_epochs = 30
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=2, T_max=max_epochs - 2, convert_to_iter_based=True),
]
