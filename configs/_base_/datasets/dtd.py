# Describable Textures, 47 classes of 120 images: train and validation part of one of its ten official splits to
# train, test part to evaluate; from the lists that `python tools/prepare_data.py dtd` writes. DTD_SPLIT=1
# to 10 in the environment chooses the split, also for a teacher that is trained first.
split = '{{$DTD_SPLIT:1}}'
data_preprocessor = dict(num_classes=47, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)

train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset',
        data_root='data/dtd',
        data_prefix='images',
        ann_file=f'lists/trainval{split}.txt',
        pipeline=[
            dict(type='kd_plugins.LoadImage'),
            dict(type='RandomResizedCrop', scale=224),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs'),
        ],
    ),
)

val_dataloader = dict(
    batch_size=64,
    num_workers=4,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset',
        data_root='data/dtd',
        data_prefix='images',
        ann_file=f'lists/test{split}.txt',
        test_mode=True,
        pipeline=[
            dict(type='kd_plugins.LoadImage'),
            dict(type='ResizeEdge', scale=256, edge='short'),
            dict(type='CenterCrop', crop_size=224),
            dict(type='PackInputs'),
        ],
    ),
)
val_evaluator = dict(type='Accuracy', topk=(1,))

test_dataloader = val_dataloader
test_evaluator = val_evaluator
