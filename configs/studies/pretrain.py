# Backbones from images without labels, by every method of methods_pretrain.py; then voc_sample.py for what they are
# worth in a detector.
#
#     python tools/study.py configs/studies/pretrain.py
title = 'A narrow ResNet-18 from a MobileNetV2, without labels'
metric = 'knn/student'
seeds = [0, 1, 2]
terms_from = 'configs/_base_/methods_pretrain.py'
teachers = {
    'MobileNetV2': dict(
        given=dict(
            config=dict(type='mmpretrain.ImageClassifier', backbone=dict(type='MobileNetV2')),
            checkpoint='data/mobilenet_v2.pth',
            data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
            size=256,
        )
    )
}
teacher_cache = True
networks = {
    'ResNet-18': dict(
        config='configs/pretrain/resnet18-narrow_from_mobilenet-v2.py',
        teacher='MobileNetV2',
        overrides=dict(custom_hooks=[]),  # the study's own, of each method
    )
}
off = dict(hook=dict(task='off'))
methods = {
    'Cosine': dict(terms=['cosine'], **off),
    'NST': dict(terms=['nst'], **off),
    'NST + Cosine': dict(terms=['nst', 'cosine'], **off),
    'FitNet': dict(terms=['fitnet'], **off),
    'AT': dict(terms=['at'], **off),
    'SP': dict(terms=['sp'], **off),
}
