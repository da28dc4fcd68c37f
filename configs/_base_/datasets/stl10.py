# STL-10 at 32 x 32 pixels, for networks that learned from CIFAR; Pillow's bilinear filter, as torchvision resizes. The
# augmentation of training and the normalisation are those of winycg/HSAKD, eval_rep.py.
data_preprocessor = dict(num_classes=10, mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True)

train_dataloader = dict(
    batch_size=64,
    num_workers=2,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='kd_plugins.STL10',
        data_root='data/stl10',
        split='train',
        pipeline=[
            dict(type='RandomResizedCrop', scale=32, backend='pillow'),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs'),
        ],
    ),
)

val_dataloader = dict(
    batch_size=256,
    num_workers=2,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='kd_plugins.STL10',
        data_root='data/stl10',
        split='test',
        pipeline=[dict(type='Resize', scale=(32, 32), backend='pillow'), dict(type='PackInputs')],
    ),
)
val_evaluator = dict(type='Accuracy', topk=(1,))

test_dataloader = val_dataloader
test_evaluator = val_evaluator
