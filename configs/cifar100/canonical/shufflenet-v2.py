_base_ = './resnet20.py'
model = dict(backbone=dict(_delete_=True, type='kd_plugins.CifarShuffleNetV2'), head=dict(in_channels=1024))
optim_wrapper = dict(optimizer=dict(lr=0.01))
