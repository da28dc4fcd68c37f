# methods_segmentation.py for backbones that return their stages, as MiT: these compare all four. Not tuned.
_base_ = './methods_segmentation.py'

stages = dict(student='backbone', teacher='backbone')
methods = dict(
    at=[dict(name='at', loss=dict(type='kd_plugins.ATLoss', convention='code'), **stages, weight=1000.0)],
    nst_poly=[dict(name='nst', loss=dict(type='kd_plugins.NSTLoss', kernel='poly'), **stages, weight=50.0)],
    sp=[dict(name='sp', loss=dict(type='kd_plugins.SPLoss'), **stages, weight=3000.0)],
    pkd=[dict(name='pkd', loss=dict(type='kd_plugins.PKDLoss'), adapter='auto', **stages, weight=6.0)],
)
