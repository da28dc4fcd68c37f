# Faster R-CNN for the 20 classes of VOC, from a ResNet-18 trained on ImageNet without distillation: the published
# weights of mmpretrain, whose recipe the distilled students of configs/imagenet/ share.
_base_ = 'mmdet::_base_/models/faster-rcnn_r50_fpn.py'

model = dict(
    backbone=dict(
        depth=18,
        init_cfg=dict(
            checkpoint='https://mmassets.onedl.ai/mmclassification/v0/resnet/resnet18_8xb32_in1k_20210831-fbbb1da6.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
    roi_head=dict(bbox_head=dict(num_classes=20)),
)
