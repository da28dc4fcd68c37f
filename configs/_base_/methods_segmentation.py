# Lists of terms for two segmentors with mmseg's heads. The scores of pixels are those of a convolution in the head; the
# head itself mmseg calls past its hooks.
scores = dict(student='decode_head.conv_seg', teacher='decode_head.conv_seg')
last = dict(student='backbone.layer4', teacher='backbone.layer4')
methods = dict(
    # As open-mmlab/mmrazor has it for PSPNet on Cityscapes. The authors' tau of 4 and weight of 3 are cwd_authors.
    cwd=[dict(name='cwd', loss=dict(type='kd_plugins.CWDLoss', tau=1.0), **scores, weight=5.0)],
    cwd_authors=[dict(name='cwd', loss=dict(type='kd_plugins.CWDLoss', tau=4.0), **scores, weight=3.0)],
    # The classes at each pixel. Not tuned.
    kd=[dict(name='kd', loss=dict(type='kd_plugins.KDLoss', tau=1.0, anchors=1), **scores, weight=1.0)],
    # These compare the last maps of two backbones. Not tuned.
    at=[dict(name='at', loss=dict(type='kd_plugins.ATLoss', convention='code'), **last, weight=1000.0)],
    nst_poly=[dict(name='nst', loss=dict(type='kd_plugins.NSTLoss', kernel='poly'), **last, weight=50.0)],
    sp=[dict(name='sp', loss=dict(type='kd_plugins.SPLoss'), **last, weight=3000.0)],
    pkd=[dict(name='pkd', loss=dict(type='kd_plugins.PKDLoss'), adapter='auto', **last, weight=6.0)],
)
