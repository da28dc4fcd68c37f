# methods_canonical.py for MobileNetV2 from a ResNet-50, without FSP, since the channels differ. MobileNetV2 has stages
# of 16 to 2 pixels, which end in a linear bottleneck; those of ResNet-50 have twice the size and end in a ReLU.
_base_ = './methods_canonical.py'
ours = ['backbone.layer2', 'backbone.layer3', 'backbone.layer5', 'backbone.layer7']
theirs = ['backbone.layer1', 'backbone.layer2', 'backbone.layer3', 'backbone.layer4']
methods = _base_.methods
for name in ('at', 'nst_linear', 'nst_poly', 'nst_gaussian'):
    methods[name][0].update(student=ours, teacher=theirs)
for name in ('cosine', 'sp', 'nst_gan'):
    methods[name][0].update(student=ours[-1], teacher=theirs[-1])
methods.fitnet[0].update(student=ours[1], teacher=theirs[1])
methods.pop('fsp')
