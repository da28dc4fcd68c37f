# The networks here are those of HobbitLong/RepDistiller, with their numbers of parameters.
_base_ = [
    '../../_base_/models/cifar_resnet.py',
    '../../_base_/datasets/cifar100.py',
    '../../_base_/schedules/cifar_240e.py',
    '../../_base_/default_runtime.py',
]
# A classifier that starts as torch initialises it, as there; MobileNetV2's and VGG's start as mmpretrain's do.
model = dict(backbone=dict(depth=20, shortcut='B'), head=dict(num_classes=100, init_cfg=None))
train_dataloader = dict(batch_size=64)
