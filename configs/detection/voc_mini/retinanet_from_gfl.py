# A small RetinaNet from the GFL of teacher.py, by a method that compares their pyramids:
#
#     python tools/train.py configs/detection/voc_mini/retinanet_from_gfl.py
_base_ = './student_from_teacher.py'
model = dict(
    type='RetinaNet',
    bbox_head=dict(
        _delete_=True,
        type='RetinaHead',
        num_classes=8,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        anchor_generator=dict(
            type='AnchorGenerator',
            ratios=[0.5, 1.0, 2.0],
            octave_base_scale=3,
            scales_per_octave=3,
            strides=[8, 16, 32],
        ),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0),
    ),
    train_cfg=dict(
        assigner=dict(_delete_=True, type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
        sampler=dict(type='PseudoSampler'),
    ),
    test_cfg=dict(nms=dict(iou_threshold=0.5)),
)
