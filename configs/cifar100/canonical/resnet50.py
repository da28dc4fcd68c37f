_base_ = './resnet20.py'
model = dict(
    backbone=dict(_delete_=True, type='ResNet_CIFAR', depth=50, zero_init_residual=False), head=dict(in_channels=2048)
)
