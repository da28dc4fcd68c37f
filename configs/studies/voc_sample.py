# A small Faster R-CNN on 600 pictures of VOC 2007: from scratch, from each backbone of pretrain_labelled.py and
# pretrain.py, seed by seed, and with their teacher as its backbone.
#
#     python tools/study.py configs/studies/pretrain.py
#     python tools/study.py configs/studies/pretrain_labelled.py
#     python tools/study.py configs/studies/voc_sample.py
title = 'Part of VOC 2007, mAP of a small Faster R-CNN'
metric = 'pascal_voc/mAP'
fraction = True
seeds = [0, 1, 2]
networks = {'Faster R-CNN': dict(config='configs/voc_sample/finetuned.py')}
common = dict(requires=[])  # the other studies train what these runs need
scratch = dict(init_cfg=None, frozen_stages=-1, norm_eval=False)
full_rate = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=1.0))))
students = {
    name: f'work_dirs/studies/{study}/resnet-18/clean/{run}/seed{{seed}}/student.pth'
    for name, study, run in (
        ('Labels, every crop new', 'pretrain_labelled', 'labels-every-crop-new'),
        ('Labels', 'pretrain_labelled', 'labels'),
        ('Labels + NST', 'pretrain_labelled', 'labels-+-nst'),
        ('Labels + Cosine', 'pretrain_labelled', 'labels-+-cosine'),
        ('Cosine', 'pretrain', 'cosine'),
        ('NST', 'pretrain', 'nst'),
        ('NST + Cosine', 'pretrain', 'nst-+-cosine'),
        ('FitNet', 'pretrain', 'fitnet'),
        ('AT', 'pretrain', 'at'),
        ('SP', 'pretrain', 'sp'),
    )
}
mobilenet = dict(
    _delete_=True,
    type='mmpretrain.MobileNetV2',
    out_indices=(2, 4, 7),
    frozen_stages=0,
    norm_eval=True,
    init_cfg=dict(type='Pretrained', checkpoint='data/mobilenet_v2.pth', prefix='backbone.'),
)
methods = {
    'From scratch': dict(overrides=dict(model=dict(backbone=scratch), optim_wrapper=full_rate)),
    **{
        name: dict(overrides=dict(model=dict(backbone=dict(init_cfg=dict(checkpoint=path)))))
        for name, path in students.items()
    },
    'The teacher as backbone': dict(
        overrides=dict(model=dict(backbone=mobilenet, neck=dict(in_channels=[32, 96, 1280])))
    ),
}
