# Faster R-CNN on VOC 2007 from a ResNet-18 distilled from a ResNet-101 with AT.
_base_ = 'baseline.py'

name = 'AT'
requires = [
    dict(
        config='configs/imagenet/resnet18_at_resnet101.py',
        checkpoint='work_dirs/imagenet/resnet18_at_resnet101/student.pth',
    )
]
model = dict(backbone=dict(init_cfg=dict(checkpoint=requires[0]['checkpoint'])))
