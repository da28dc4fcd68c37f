_base_ = [
    '../_base_/models/cifar_resnet.py',
    '../_base_/datasets/cifar100.py',
    '../_base_/schedules/cifar_200e.py',
    '../_base_/default_runtime.py',
]
model = dict(backbone=dict(depth=8), head=dict(num_classes=100))
