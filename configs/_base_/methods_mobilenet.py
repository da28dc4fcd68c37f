# The lists of terms of methods_imagenet.py, for MobileNetV2 from a ResNet. At strides 4, 8 and 16 MobileNetV2's stages
# end in a linear bottleneck, whose squares AT takes; its last map, of conv2, is activated as the teacher's are.
_base_ = './methods_imagenet.py'
methods = _base_.methods
methods.at[0].student = ['backbone.layer2', 'backbone.layer3', 'backbone.layer5', 'backbone.conv2']
methods.reviewkd[0].student = [f'backbone.layer{i}' for i in (2, 3, 5, 7)] + ['neck.gap']
for name in ('fitnet', 'cwd', 'mgd', 'pkd', 'sp', 'vid', 'nst_poly'):
    methods[name][0].student = 'backbone.conv2'
