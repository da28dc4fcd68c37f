# Linear probes on the 600 pictures of VOC 2007: of each backbone of pretrain_labelled.py and pretrain.py, seed by seed,
# of one with random weights, and of their teacher.
#
# The students without labels have three seeds, which the patterns choose; the other methods have five.
#
#     python tools/study.py configs/studies/voc_sample_probe.py \
#         --only '*/seed[0-2]' '*/labels*' '*/from-scratch/*' '*/the-teacher*'
_base_ = './voc_sample.py'

title = 'Part of VOC 2007, mAP of a linear probe'
metric = 'multi-label/mAP'
fraction = False
seeds = [0, 1, 2, 3, 4]
networks = dict(_delete_=True, ResNet=dict(config='configs/voc_sample/probe.py'))
methods = {
    'From scratch': dict(_delete_=True, overrides=dict(model=dict(backbone=dict(init_cfg=None)))),
    'The teacher as backbone': dict(
        _delete_=True,
        overrides=dict(model=dict(backbone=dict(_base_.mobilenet, out_indices=(7,)), head=dict(in_channels=1280))),
    ),
}
