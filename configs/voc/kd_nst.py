# Faster R-CNN on VOC 2007 from a ResNet-18 distilled from a ResNet-101 with KD+NST.
_base_ = 'baseline.py'

name = 'KD+NST'
requires = [
    dict(
        config='configs/imagenet/resnet18_kd_nst_resnet101.py',
        checkpoint='work_dirs/imagenet/resnet18_kd_nst_resnet101/student.pth',
    )
]
model = dict(backbone=dict(init_cfg=dict(checkpoint=requires[0]['checkpoint'])))
