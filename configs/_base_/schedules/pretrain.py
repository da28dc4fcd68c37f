# AdamW under bfloat16 for a small network on a CPU: one epoch of warm-up, then half a cosine.
max_epochs = 8
train_cfg = dict(by_epoch=True, max_epochs=max_epochs)
optim_wrapper = dict(type='kd_plugins.BF16OptimWrapper', optimizer=dict(type='AdamW', lr=4e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, T_max=max_epochs - 1, convert_to_iter_based=True),
]
