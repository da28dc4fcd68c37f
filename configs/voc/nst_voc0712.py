# nst_voc.py with the trainval sets of VOC 2007 and 2012 together; tested on 2007.
_base_ = 'baseline_voc0712.py'

name = 'NST'
requires = [
    dict(
        config='configs/imagenet/resnet18_nst-poly_resnet101.py',
        checkpoint='work_dirs/imagenet/resnet18_nst-poly_resnet101/student.pth',
    )
]
compare = dict(baseline='configs/voc/baseline_voc0712.py')
model = dict(backbone=dict(init_cfg=dict(checkpoint=requires[0]['checkpoint'])))
