# Lists of terms from a teacher's modules 'embedding' (B, C) and 'maps' (B, C, H, W), into a re-ID student with the
# backbone of a ResNet: 'head.bnneck' is the feature that it retrieves by.
embeddings = dict(student='head.bnneck', teacher='embedding')
maps = dict(student='backbone.layer4', teacher='maps')
methods = dict(
    cosine=[dict(name='cosine', loss=dict(type='kd_plugins.CosineLoss'), adapter='auto', **embeddings, weight=10.0)],
    nst=[dict(name='nst', loss=dict(type='kd_plugins.NSTLoss', kernel='poly'), **maps, weight=50.0)],
    rkd_da=[
        dict(
            name='rkd_da',
            loss=dict(type='kd_plugins.RKDLoss', distance_weight=25.0, angle_weight=50.0, convention='code'),
            **embeddings,
        )
    ],
    sp=[dict(name='sp', loss=dict(type='kd_plugins.SPLoss'), **embeddings, weight=3000.0)],
)
