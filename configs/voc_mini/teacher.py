# The teacher: the student at twice the width, and all pictures with their labels.
#
#     SEED=1 python tools/train.py configs/nst_voc_mini.py
#
# repeats all runs with another seed; by default it is 0.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/drawn_cls.py', '../_base_/models/resnet18_narrow.py']
default_scope = 'mmpretrain'
seed = '{{$SEED:0}}'
variant = '' if seed == '0' else f'seed{seed}'
randomness = dict(seed=int(seed))
model = dict(backbone=dict(stem_channels=32, base_channels=32), head=dict(in_channels=256, num_classes=8))

max_epochs = 9
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=4e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=140),
    dict(type='CosineAnnealingLR', by_epoch=True, T_max=max_epochs, convert_to_iter_based=True),
]
