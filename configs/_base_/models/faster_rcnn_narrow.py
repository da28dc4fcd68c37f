# A Faster R-CNN for small images and a CPU: a narrow ResNet-18, three pyramid levels, few proposals.
_base_ = 'faster_rcnn_r18_fpn.py'

model = dict(
    backbone=dict(stem_channels=16, base_channels=16, out_indices=(1, 2, 3), frozen_stages=0),
    neck=dict(in_channels=[32, 64, 128], out_channels=48, num_outs=3),
    rpn_head=dict(in_channels=48, feat_channels=48, anchor_generator=dict(scales=[3], strides=[8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(
            roi_layer=dict(output_size=5, sampling_ratio=1),
            out_channels=48,
            featmap_strides=[8, 16, 32],
            finest_scale=28,
        ),
        bbox_head=dict(in_channels=48, fc_out_channels=128, roi_feat_size=5),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)), rpn_proposal=dict(nms_pre=200, max_per_img=100), rcnn=dict(sampler=dict(num=32))
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100), rcnn=dict(max_per_img=50)),
)
