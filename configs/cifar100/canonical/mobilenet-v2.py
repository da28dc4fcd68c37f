_base_ = './vgg8.py'
model = dict(
    backbone=dict(_delete_=True, type='kd_plugins.CifarMobileNetV2', widen_factor=0.5), head=dict(in_channels=1280)
)
optim_wrapper = dict(optimizer=dict(lr=0.01))
