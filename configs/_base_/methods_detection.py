# Lists of terms for the pyramids of two detectors, whatever their heads; methods_retinanet.py, methods_gfl.py,
# methods_fcos.py and methods_rtmdet.py add those for heads. A term compares all levels in order and sums them; pyramids
# of other strides need its student_levels and teacher_levels, and other channels its adapter='auto'. AT, SP and FitNet
# have not been tuned.
pyramid = dict(student='neck', teacher='neck')
methods = dict(
    # The authors' 10 is for RetinaNet, on four of its five levels; they have 6 for Faster R-CNN, and CrossKD's authors
    # 6 beside it.
    pkd=[dict(name='pkd', loss=dict(type='kd_plugins.PKDLoss'), **pyramid, weight=10.0)],
    cwd=[dict(name='cwd', loss=dict(type='kd_plugins.CWDLoss', tau=1.0), **pyramid, weight=10.0)],  # as in mmrazor
    # The loss is a sum over a map's channels and positions, so that the weight is small.
    mgd=[dict(name='mgd', loss=dict(type='kd_plugins.MGDLoss', share=0.65), **pyramid, weight=2e-5)],
    # The authors' weight for Faster R-CNN and RetinaNet, R50 from R101; they have 1.2 for R18, and 2 for MobileNetV2
    # from R50.
    reviewkd=[dict(name='reviewkd', loss=dict(type='kd_plugins.ReviewKDLoss'), adapter='abf', **pyramid, weight=1.0)],
    nst_poly=[dict(name='nst', loss=dict(type='kd_plugins.NSTLoss', kernel='poly'), **pyramid, weight=5.0)],
    at=[dict(name='at', loss=dict(type='kd_plugins.ATLoss', convention='code'), **pyramid, weight=100.0)],
    sp=[dict(name='sp', loss=dict(type='kd_plugins.SPLoss'), **pyramid, weight=100.0)],
    fitnet=[dict(name='fitnet', loss=dict(type='kd_plugins.FitNetLoss'), adapter='auto', **pyramid, weight=1.0)],
)
