# Stage 1 without distillation: the narrow classifier on drawn shapes.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/drawn_cls.py', '../_base_/models/resnet18_narrow.py']
default_scope = 'mmpretrain'
model = dict(head=dict(num_classes=8))

max_epochs = 4
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=4e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, T_max=max_epochs - 1, convert_to_iter_based=True),
]
