# methods_detection.py and what compares the scores of two RTMDets, whose heads have a layer for each level.
_base_ = './methods_detection.py'

layers = ['bbox_head.rtm_cls.0', 'bbox_head.rtm_cls.1', 'bbox_head.rtm_cls.2']
scores = dict(student=layers, teacher=layers)
methods = dict(
    cwd_head=[dict(name='cwd_head', loss=dict(type='kd_plugins.CWDLoss', tau=1.0), **scores, weight=10.0)],
    # Not tuned. These heads score each class by itself, so that each is a yes or no.
    kd_head=[
        dict(
            name='kd_head',
            loss=dict(type='kd_plugins.KDLoss', tau=2.0, anchors=1, use_sigmoid=True),
            **scores,
            weight=1.0,
        )
    ],
)
