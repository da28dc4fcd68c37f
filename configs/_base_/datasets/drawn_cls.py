# A classification set of the same shapes as drawn_voc.py, drawn when first needed.
data_root = 'data/drawn/classification/'
prepare = [dict(type='kd_plugins.datasets.drawing.draw_classification', root=data_root)]
data_preprocessor = dict(num_classes=8, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)

train_dataloader = dict(
    batch_size=64,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset',
        data_root=data_root,
        data_prefix='train',
        pipeline=[
            dict(type='kd_plugins.LoadImage'),
            dict(type='RandomFlip', prob=0.5),
            dict(type='RandomCrop', crop_size=48, padding=6),
            dict(type='PackInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset',
        data_root=data_root,
        data_prefix='val',
        test_mode=True,
        pipeline=[dict(type='kd_plugins.LoadImage'), dict(type='PackInputs')],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=1)
test_evaluator = val_evaluator
