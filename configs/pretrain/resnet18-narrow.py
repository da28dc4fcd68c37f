# The same student from labels instead of a teacher, on the part of the images that has any: fifty classes in
# data/labelled/{train,val}/<class>/.
_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/labelled_sample.py',
    '../_base_/models/resnet18_narrow.py',
    '../_base_/schedules/pretrain.py',
]
model = dict(head=dict(num_classes=50))
default_hooks = dict(layout=dict(type='kd_plugins.ChannelsLastHook'))
train_cfg = dict(val_interval=_base_.max_epochs)
val_cfg = dict()
