# A quick probe of a ResNet-8 that learned CIFAR-10, on 40 classes of Tiny-ImageNet, 250 images each, in
# data/tiny-imagenet-40/{train,val}/<class>/.
#
#     python tools/train.py configs/transfer/tiny_imagenet_sample_probe.py
_base_ = ['../_base_/models/cifar_resnet.py', '../_base_/datasets/tiny_imagenet_32.py', '../_base_/default_runtime.py']
from kd_plugins.config import trained

requires = [trained('configs/cifar10_quick/student.py')]
model = dict(
    backbone=dict(depth=8, init_cfg=dict(type='Pretrained', checkpoint=requires[0]['checkpoint'], prefix='backbone.')),
    head=dict(num_classes=40, topk=(1, 5)),
)
default_hooks = dict(
    frozen=dict(type='kd_plugins.FreezeHook', modules=['backbone']), layout=dict(type='kd_plugins.ChannelsLastHook')
)

data_preprocessor = dict(num_classes=40)
train_dataloader = dict(dataset=dict(data_root='data/tiny-imagenet-40'))
val_dataloader = dict(dataset=dict(data_root='data/tiny-imagenet-40'))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.0))
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[2, 4, 5], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=6, val_interval=6)
val_cfg = dict()
test_cfg = dict()
