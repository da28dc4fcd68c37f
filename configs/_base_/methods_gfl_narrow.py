# The methods for two GFLs whose heads have two convolutions: CrossKD hands over behind the first.
_base_ = './methods_gfl.py'

methods = dict(
    crosskd=[
        dict(
            name='crosskd',
            loss=dict(type='kd_plugins.CrossKDLoss', layer=1, boxes=2.0),
            student='bbox_head',
            teacher='bbox_head',
        )
    ],
)
