# methods_canonical_vgg.py for MobileNetV2 from a ResNet-50, without FSP, since the channels differ. The stages of the
# former have 16 to 2 pixels and end in a linear bottleneck; those of the latter have twice the size and end in a ReLU.
_base_ = './methods_canonical_vgg.py'
methods = _base_.methods
methods.pop('fsp')
for method in methods.values():
    for term in method:
        for side, layers in (('student', (2, 3, 5, 7)), ('teacher', (1, 2, 3, 4))):
            names = {f'backbone.stage{i}': f'backbone.layer{layer}' for i, layer in enumerate(layers, 1)}
            taps = term[side]
            term[side] = names.get(taps, taps) if isinstance(taps, str) else [names.get(tap, tap) for tap in taps]
methods.reviewkd[0].teacher = [f'backbone.layer{i}' for i in (1, 2, 3, 4)] + ['neck.gap']
