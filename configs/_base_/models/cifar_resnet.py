# The width of He et al. 2016: 16, 32 and 64 channels.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='kd_plugins.CifarResNet', depth=20, width=16),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss', loss_weight=1.0)
    ),
)
