_base_ = ['../../_base_/pairs/cifar100_resnet26_resnet8.py', '../../_base_/methods.py']
model = dict(head=dict(loss=dict(loss_weight=0.1)))
custom_hooks = [
    dict(type='kd_plugins.DistillationHook', teacher=_base_.teacher, terms=_base_.methods.kd_alpha + _base_.methods.at)
]
