# Describable Textures, as Tung and Mori 2019 (arXiv 1907.09682) fine-tune on it: the median error of the ten splits. A
# seed of this study is a split, of students and teachers alike. Their networks have no public weights in mmpretrain
# (configs/transfer/dtd/resnet50.py), and their values could not be found.
splits = dict(
    split='{seed}',
    train_dataloader=dict(dataset=dict(ann_file='lists/trainval{seed}.txt')),
    val_dataloader=dict(dataset=dict(ann_file='lists/test{seed}.txt')),
    test_dataloader=dict(dataset=dict(ann_file='lists/test{seed}.txt')),
)
teachers = {'ResNet-50': dict(config='configs/transfer/dtd/resnet50.py', overrides=splits)}
networks = {
    'MobileNetV2 < ResNet-50': dict(
        config='configs/transfer/dtd/mobilenet-v2.py', teacher='ResNet-50', overrides=splits
    ),
}
terms_from = 'configs/_base_/methods_mobilenet.py'
methods = {
    'Student': dict(),
    'KD': dict(terms=['kd']),
    'SP': dict(terms=['sp']),
    'NST poly': dict(terms=['nst_poly']),
}
teacher_seeds = 'each'
title = 'Describable Textures, ten splits'
error = True
average = 'median'
seeds = list(range(1, 11))
