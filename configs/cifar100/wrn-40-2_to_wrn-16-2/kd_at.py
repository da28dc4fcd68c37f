_base_ = ['../../_base_/pairs/cifar100_wrn-40-2_wrn-16-2.py', '../../_base_/methods_wrn.py']
model = dict(head=dict(loss=dict(loss_weight=0.1)))
custom_hooks = [
    dict(type='kd_plugins.DistillationHook', teacher=_base_.teacher, terms=_base_.methods.kd_alpha + _base_.methods.at)
]
