# Stage 1 without distillation: the narrow classifier on 40 classes of Tiny-ImageNet, 250 images each, in
# data/tiny-imagenet-40/{train,val}/<class>/.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/tiny_imagenet.py', '../_base_/models/resnet18_narrow.py']
data_preprocessor = dict(num_classes=40)
train_dataloader = dict(batch_size=64, dataset=dict(data_root='data/tiny-imagenet-40'))
val_dataloader = dict(dataset=dict(data_root='data/tiny-imagenet-40'))
test_dataloader = val_dataloader
model = dict(head=dict(num_classes=40, topk=(1, 5)))

max_epochs = 8
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(layout=dict(type='kd_plugins.ChannelsLastHook'))
optim_wrapper = dict(type='kd_plugins.BF16OptimWrapper', optimizer=dict(type='AdamW', lr=4e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, T_max=max_epochs - 1, convert_to_iter_based=True),
]
