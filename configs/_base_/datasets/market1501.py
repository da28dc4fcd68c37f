# Market-1501 in the official layout, at 256 x 128 pixels; 16 identities with 4 images each in a batch.
data_preprocessor = dict(num_classes=751, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)

train_pipeline = [
    dict(type='kd_plugins.LoadImage'),
    dict(type='Resize', scale=(128, 256)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='RandomCrop', crop_size=(256, 128), padding=10),
    # In the order of the image in memory, blue first.
    dict(type='RandomErasing', erase_prob=0.5, fill_color=(103.53, 116.28, 123.675)),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='kd_plugins.LoadImage'),
    dict(type='Resize', scale=(128, 256)),
    dict(type='PackInputs', meta_keys=('img_path', 'identity', 'camera', 'is_query')),
]

train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='kd_plugins.PKSampler', identities=16, instances=4),
    dataset=dict(
        type='kd_plugins.Market1501', data_root='data/Market-1501-v15.09.15', split='train', pipeline=train_pipeline
    ),
)

val_dataloader = dict(
    batch_size=128,
    num_workers=4,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='kd_plugins.Market1501', data_root='data/Market-1501-v15.09.15', split='test', pipeline=test_pipeline
    ),
)
val_evaluator = dict(type='kd_plugins.ReIDMetric')

test_dataloader = val_dataloader
test_evaluator = val_evaluator
