# Lists of terms to put into a DistillationHook, for a ResNet from a MobileNetV2 whose batch is resized to twice the
# student's size. MobileNetV2's stages end in linear bottlenecks, its last map (conv2) in a ReLU6; at twice the size,
# conv2 has the cells of the student's layer3, and pooled to half those of layer4.
last = dict(student='backbone.layer4', teacher='backbone.conv2')
methods = dict(
    # One 1 x 1 convolution to the teacher's 1280 channels, thrown away after training.
    cosine=[dict(name='cosine', loss=dict(type='kd_plugins.CosineLoss', smooth_l1=0.0), adapter='auto', **last)],
    nst=[
        dict(
            name='nst',
            loss=dict(type='kd_plugins.NSTLoss', kernel='poly'),
            student='backbone.layer3',
            teacher='backbone.conv2',
            weight=0.5,
        )
    ],
    fitnet=[dict(name='fitnet', loss=dict(type='kd_plugins.FitNetLoss'), adapter='auto', **last)],
    # Where both are active: the sums of squares of the last two strides.
    at=[
        dict(
            name='at',
            loss=dict(type='kd_plugins.ATLoss'),
            student=['backbone.layer3', 'backbone.layer4'],
            teacher=['backbone.layer5', 'backbone.conv2'],
        )
    ],
    sp=[dict(name='sp', loss=dict(type='kd_plugins.SPLoss'), **last, weight=3000.0)],
)
