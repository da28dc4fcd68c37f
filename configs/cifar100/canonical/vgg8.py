_base_ = './resnet20.py'
model = dict(
    backbone=dict(_delete_=True, type='kd_plugins.CifarVGG', depth=8),
    head=dict(in_channels=512, init_cfg=dict(_delete_=True, type='Normal', layer='Linear', std=0.01)),
)
