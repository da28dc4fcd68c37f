_base_ = './resnet50.py'
model = dict(
    backbone=dict(
        depth=18,
        init_cfg=dict(
            checkpoint='https://mmassets.onedl.ai/mmclassification/v0/resnet/resnet18_8xb32_in1k_20210831-fbbb1da6.pth'
        ),
    ),
    head=dict(in_channels=512),
)
