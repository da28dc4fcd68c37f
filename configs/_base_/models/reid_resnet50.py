# The strong baseline of Luo et al. 2019: last stride 1, BNNeck, label smoothing, batch-hard triplet loss.
model = dict(
    type='kd_plugins.ReIDModel',
    backbone=dict(
        type='ResNet',
        depth=50,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://mmassets.onedl.ai/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='kd_plugins.ReIDHead', num_classes=751, in_channels=2048),
    last_stride=1,
)
