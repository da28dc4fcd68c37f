# The folder that `python tools/prepare_data.py tiny-imagenet` leaves: train/<class>/ and val/<class>/, 64 x 64 pixels.
# Mean and standard deviation of the pixels of the training set, RGB.
data_preprocessor = dict(num_classes=200, mean=[122.4, 114.3, 101.4], std=[70.6, 68.6, 71.9], to_rgb=True)

train_dataloader = dict(
    batch_size=128,
    num_workers=2,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset',
        data_root='data/tiny-imagenet-200',
        data_prefix='train',
        pipeline=[
            dict(type='kd_plugins.LoadImage'),
            dict(type='RandomCrop', crop_size=64, padding=8),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs'),
        ],
    ),
)

val_dataloader = dict(
    batch_size=128,
    num_workers=2,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset',
        data_root='data/tiny-imagenet-200',
        data_prefix='val',
        pipeline=[dict(type='kd_plugins.LoadImage'), dict(type='PackInputs')],
    ),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))

test_dataloader = val_dataloader
test_evaluator = val_evaluator
