# A linear probe: how well the frozen backbone of a first stage tells the classes of VOC 2007, of which it sees 600
# pictures. It takes two minutes of one core.
#
#     METHOD=cosine python tools/train.py configs/voc_sample/probe.py
_base_ = ['../_base_/models/resnet18_narrow.py', '../_base_/default_runtime.py']
from kd_plugins.config import trained

variant = '{{$METHOD:cosine}}'
max_epochs = 40
name = f'probe of {variant}'
requires = [trained('configs/pretrain/resnet18-narrow_from_mobilenet-v2.py', variant)]
model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=requires[0]['checkpoint'], prefix='backbone.')),
    head=dict(
        _delete_=True,
        type='MultiLabelLinearClsHead',
        num_classes=20,
        in_channels=128,
        loss=dict(type='CrossEntropyLoss', use_sigmoid=True),
    ),
)
default_hooks = dict(
    frozen=dict(type='kd_plugins.FreezeHook', modules=['backbone']), checkpoint=dict(interval=max_epochs)
)

# The whole picture, not a crop, since its classes are those of all its objects.
data_preprocessor = dict(
    num_classes=20, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True, to_onehot=True
)
read = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(160, 160))]
pack = dict(type='PackInputs', meta_keys=('sample_idx', 'img_path', 'gt_label_difficult'))
voc = dict(type='VOC', data_root='data/VOCdevkit/VOC2007')
loader = dict(batch_size=50, num_workers=1, persistent_workers=True, collate_fn=dict(type='default_collate'))
train_dataloader = dict(
    loader,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(voc, split='trainval', pipeline=[*read, dict(type='RandomFlip', prob=0.5), pack]),
)
val_dataloader = dict(
    loader,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(voc, split='test', pipeline=[*read, pack]),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='VOCAveragePrecision')
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-2, weight_decay=1e-2))
param_scheduler = dict(type='CosineAnnealingLR', by_epoch=True, T_max=max_epochs, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict()
test_cfg = dict()
