# Two networks of different architecture, trained as in dml.py.
_base_ = './wrn-28-2.py'
resnet26 = dict(
    type='ImageClassifier',
    backbone=dict(type='kd_plugins.CifarResNet', depth=26),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=64, loss=dict(type='CrossEntropyLoss')),
)
model = dict(_delete_=True, type='kd_plugins.MutualLearning', student=_base_.model, peers=[resnet26])
