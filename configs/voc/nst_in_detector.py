# NST between two detectors while the student learns VOC 2007: on the backbone and on every level of the pyramid.
# The teacher is mmdet's published Faster R-CNN with a ResNet-50, trained on trainval of VOC 2007 and 2012.
_base_ = 'baseline.py'

name = 'NST in the detector'
compare = dict(baseline='configs/voc/baseline.py')
custom_hooks = [
    dict(
        type='kd_plugins.DistillationHook',
        teacher=dict(
            config='mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py',
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/pascal_voc/faster_rcnn_r50_fpn_1x_voc0712/'
            'faster_rcnn_r50_fpn_1x_voc0712_20220320_192712-54bef0f3.pth',
        ),
        terms=[
            dict(
                name='nst_backbone',
                loss=dict(type='kd_plugins.NSTLoss', kernel='poly'),
                student='backbone.layer4',
                teacher='backbone.layer4',
                weight=25.0,
            ),
            # The pyramid has five levels, whose losses are summed.
            dict(
                name='nst_pyramid',
                loss=dict(type='kd_plugins.NSTLoss', kernel='poly'),
                student='neck',
                teacher='neck',
                weight=5.0,
            ),
        ],
    )
]
