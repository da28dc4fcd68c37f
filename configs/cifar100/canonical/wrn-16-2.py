_base_ = './resnet20.py'
model = dict(
    backbone=dict(_delete_=True, type='kd_plugins.WideResNet', depth=16, widen_factor=2), head=dict(in_channels=128)
)
