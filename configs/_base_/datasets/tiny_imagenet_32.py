# Tiny-ImageNet at 32 x 32 pixels, for networks that learned from CIFAR; Pillow's bilinear filter, as torchvision
# resizes. The augmentation of training and the normalisation are those of winycg/HSAKD, eval_rep.py.
_base_ = 'tiny_imagenet.py'

data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
train_dataloader = dict(
    batch_size=64,
    dataset=dict(
        pipeline=[
            dict(type='kd_plugins.LoadImage'),
            dict(type='RandomResizedCrop', scale=32, backend='pillow'),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs'),
        ]
    ),
)
val_dataloader = dict(
    batch_size=256,
    dataset=dict(
        pipeline=[
            dict(type='kd_plugins.LoadImage'),
            dict(type='Resize', scale=(32, 32), backend='pillow'),
            dict(type='PackInputs'),
        ]
    ),
)
test_dataloader = val_dataloader
