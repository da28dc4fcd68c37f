_base_ = [
    '../_base_/models/cifar_resnet.py',
    '../_base_/datasets/cifar10.py',
    '../_base_/schedules/cifar_quick.py',
    '../_base_/default_runtime.py',
]
model = dict(backbone=dict(depth=8))
default_hooks = dict(layout=dict(type='kd_plugins.ChannelsLastHook'))
# The students learn from 20,000 of the images; the teacher has seen all.
train_dataloader = dict(dataset=dict(indices=20000))
