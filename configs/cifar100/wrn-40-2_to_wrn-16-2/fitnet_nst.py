_base_ = ['../../_base_/pairs/cifar100_wrn-40-2_wrn-16-2.py', '../../_base_/methods_wrn.py']
custom_hooks = [
    dict(
        type='kd_plugins.DistillationHook',
        teacher=_base_.teacher,
        terms=_base_.methods.fitnet + _base_.methods.nst_poly,
    )
]
