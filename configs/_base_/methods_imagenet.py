# The lists of terms of methods.py, for mmpretrain's four-stage backbones, whose stages layer1 to layer4 end in a ReLU.
logits = dict(student='head.fc', teacher='head.fc')
embeddings = dict(student='neck', teacher='neck')
last = dict(student='backbone.layer4', teacher='backbone.layer4')
stages = ['backbone.layer1', 'backbone.layer2', 'backbone.layer3', 'backbone.layer4']
ends = dict(student=stages, teacher=stages)
pooled = 'neck.gap'  # a map of one pixel
methods = dict(
    kd=[dict(name='kd', loss=dict(type='kd_plugins.KDLoss', tau=4.0), **logits, weight=1.0)],
    # As in megvii-research/mdistiller for ResNet-18 from ResNet-34, without a warm-up.
    dkd=[dict(name='dkd', loss=dict(type='kd_plugins.DKDLoss', alpha=1.0, beta=0.5, tau=1.0), **logits, weight=1.0)],
    # As in yzd-v/cls_KD for ResNet-18 from ResNet-34, and in hunto/DIST_KD.
    nkd=[dict(name='nkd', loss=dict(type='kd_plugins.NKDLoss', gamma=1.5, tau=1.0), **logits, weight=1.0)],
    dist=[dict(name='dist', loss=dict(type='kd_plugins.DISTLoss', tau=1.0), **logits, weight=1.0)],
    # On the same maps as NST, as in NST's tables.
    fitnet=[dict(name='fitnet', loss=dict(type='kd_plugins.FitNetLoss'), adapter='auto', **last, weight=200.0)],
    cosine=[dict(name='cosine', loss=dict(type='kd_plugins.CosineLoss'), adapter='mlp', **last, weight=1.0)],
    at=[dict(name='at', loss=dict(type='kd_plugins.ATLoss', convention='code'), **ends, weight=1000.0)],
    sp=[dict(name='sp', loss=dict(type='kd_plugins.SPLoss'), **last, weight=3000.0)],
    pkt=[dict(name='pkt', loss=dict(type='kd_plugins.PKTLoss'), **embeddings, weight=30000.0)],
    crd=[dict(name='crd', loss=dict(type='kd_plugins.CRDLoss'), **embeddings, weight=0.8)],
    vid=[dict(name='vid', loss=dict(type='kd_plugins.VIDLoss'), **last, weight=1.0)],
    rkd_d=[
        dict(
            name='rkd_d',
            loss=dict(type='kd_plugins.RKDLoss', distance_weight=25.0, angle_weight=0.0, convention='code'),
            **embeddings,
        )
    ],
    rkd_a=[
        dict(
            name='rkd_a',
            loss=dict(type='kd_plugins.RKDLoss', distance_weight=0.0, angle_weight=50.0, convention='code'),
            **embeddings,
        )
    ],
    rkd_da=[
        dict(
            name='rkd_da',
            loss=dict(type='kd_plugins.RKDLoss', distance_weight=25.0, angle_weight=50.0, convention='code'),
            **embeddings,
        )
    ],
    # The weights are those of an FPN's level.
    cwd=[dict(name='cwd', loss=dict(type='kd_plugins.CWDLoss', tau=1.0), adapter='auto', **last, weight=10.0)],
    pkd=[dict(name='pkd', loss=dict(type='kd_plugins.PKDLoss'), adapter='auto', **last, weight=6.0)],
    # yzd-v/MGD's setting for ResNet-18 from ResNet-34; the loss is a sum.
    mgd=[dict(name='mgd', loss=dict(type='kd_plugins.MGDLoss', share=0.15, mask='channels'), **last, weight=7e-5)],
    # As in dvlab-research/ReviewKD, which weighs it with 1 (ResNet-18 from ResNet-34); but its maps are those before
    # the activation, for which mmpretrain's residual blocks have no tap.
    reviewkd=[
        dict(
            name='reviewkd',
            loss=dict(type='kd_plugins.ReviewKDLoss'),
            adapter='abf',
            student=[*stages, pooled],
            teacher=[*stages, pooled],
            weight=1.0,
        )
    ],
    nst_poly=[dict(name='nst', loss=dict(type='kd_plugins.NSTLoss', kernel='poly'), **last, weight=50.0)],
)
