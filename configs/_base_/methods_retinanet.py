# methods_detection.py and what compares the heads of two RetinaNets.
_base_ = './methods_detection.py'

heads = dict(student='bbox_head', teacher='bbox_head')
scores = dict(student='bbox_head.retina_cls', teacher='bbox_head.retina_cls')
methods = dict(
    crosskd=[dict(name='crosskd', loss=dict(type='kd_plugins.CrossKDLoss', layer=3), **heads)],
    cwd_head=[dict(name='cwd_head', loss=dict(type='kd_plugins.CWDLoss', tau=1.0), **scores, weight=10.0)],
    # Not tuned. These heads score each class by itself, so that each is a yes or no.
    kd_head=[
        dict(
            name='kd_head',
            loss=dict(type='kd_plugins.KDLoss', tau=2.0, anchors=9, use_sigmoid=True),
            **scores,
            weight=1.0,
        )
    ],
)
