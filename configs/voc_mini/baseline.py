# Stage 2: a small Faster R-CNN on 64 drawn scenes, from the student trained on few labels. Nothing is frozen, as from
# scratch.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/drawn_voc.py', '../_base_/models/faster_rcnn_narrow.py']
from kd_plugins.config import trained

default_scope = 'mmdet'
name = 'few labels'
seed = '{{$SEED:0}}'
variant = '' if seed == '0' else f'seed{seed}'
randomness = dict(seed=int(seed))
requires = [trained('configs/voc_mini/student.py', variant)]
model = dict(
    backbone=dict(frozen_stages=-1, norm_eval=False, init_cfg=dict(checkpoint=requires[0]['checkpoint'])),
    roi_head=dict(bbox_head=dict(num_classes=8)),
)

max_epochs = 25
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(checkpoint=dict(interval=5))
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.02), clip_grad=dict(max_norm=10.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=5, T_max=max_epochs - 5, convert_to_iter_based=True),
]
