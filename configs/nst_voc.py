# NST on ImageNet (ResNet-101 to ResNet-18), then Faster R-CNN on VOC 2007 from the distilled student.
#
#     python tools/train.py configs/nst_voc.py
_base_ = 'voc/baseline.py'

name = 'NST'
requires = [
    dict(
        config='configs/imagenet/resnet18_nst-poly_resnet101.py',
        checkpoint='work_dirs/imagenet/resnet18_nst-poly_resnet101/student.pth',
    )
]
compare = dict(baseline='configs/voc/baseline.py')
model = dict(backbone=dict(init_cfg=dict(checkpoint=requires[0]['checkpoint'])))
