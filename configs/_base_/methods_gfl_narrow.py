# The methods for the two GFLs of gfl_narrow.py. Their heads have two convolutions: CrossKD hands over behind the first.
# Weights are such that in the first steps on drawn scenes each term of the pyramid has a gradient of norm 1 to 4 on
# backbone and pyramid; CrossKD's is 15, the task's 0.2. MGD's loss is a sum over maps, which are smaller than COCO's.
_base_ = './methods_gfl.py'

pyramid = dict(student='neck', teacher='neck')
heads = dict(student='bbox_head', teacher='bbox_head')
methods = dict(
    pkd=[dict(name='pkd', loss=dict(type='kd_plugins.PKDLoss'), **pyramid, weight=2.0)],
    cwd=[dict(name='cwd', loss=dict(type='kd_plugins.CWDLoss', tau=1.0), **pyramid, weight=1.0)],
    mgd=[dict(name='mgd', loss=dict(type='kd_plugins.MGDLoss', share=0.65), **pyramid, weight=1e-3)],
    nst_poly=[dict(name='nst', loss=dict(type='kd_plugins.NSTLoss', kernel='poly'), **pyramid, weight=2.5)],
    crosskd=[dict(name='crosskd', loss=dict(type='kd_plugins.CrossKDLoss', layer=1, boxes=2.0), **heads)],
)
