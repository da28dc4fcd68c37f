# Stage 1 without a teacher: the narrow classifier, from 20 labelled pictures a class.
_base_ = 'teacher.py'

model = dict(backbone=dict(stem_channels=16, base_channels=16), head=dict(in_channels=128))
labelled = [600 * label + i for label in range(8) for i in range(20)]
train_dataloader = dict(batch_size=32, dataset=dict(indices=labelled * 30))

max_epochs = 2  # 300 iterations, as many as with NST
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=60),
    dict(type='CosineAnnealingLR', by_epoch=True, T_max=max_epochs, convert_to_iter_based=True),
]
