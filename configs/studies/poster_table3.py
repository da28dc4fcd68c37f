# Table III of Sarfraz et al. 2020: twelve methods on eight networks, CIFAR-10.
_base_ = './_base_/poster.py'

title = 'CIFAR-10'
# Which network taught which is recalled, not read: ResNet-26 the ResNets, WRN-40-2 the WRNs.
teachers = {
    'ResNet-26': dict(config='configs/cifar10/resnet26.py', overrides=_base_.sgd),
    'WRN-40-2': dict(config='configs/cifar10/wrn-40-2.py', overrides=_base_.sgd),
}
overrides = dict(_base_.curves, **_base_.sgd)
wrn = dict(teacher='WRN-40-2', terms_from='configs/_base_/methods_wrn.py', overrides=overrides, methods=_base_.wide)
networks = {
    'ResNet-8': dict(config='configs/cifar10/resnet8.py', teacher='ResNet-26', overrides=overrides),
    'ResNet-14': dict(config='configs/cifar10/resnet14.py', teacher='ResNet-26', overrides=overrides),
    'ResNet-20': dict(config='configs/cifar10/resnet20.py', teacher='ResNet-26', overrides=overrides),
    'ResNet-26': dict(config='configs/cifar10/resnet26.py', teacher='ResNet-26', overrides=overrides),
    'WRN-10-2': dict(wrn, config='configs/cifar10/wrn-10-2.py'),
    'WRN-16-2': dict(wrn, config='configs/cifar10/wrn-16-2.py'),
    'WRN-28-2': dict(wrn, config='configs/cifar10/wrn-28-2.py'),
    'WRN-40-2': dict(wrn, config='configs/cifar10/wrn-40-2.py'),
}
seeds = [0, 1, 2, 3, 4]
references = [dict(corruption='clean', table=_base_.poster_table3)]
notes = (
    'Published values: Sarfraz et al. 2020, Table III; which teacher taught which network there is recalled, '
    'unverified.'
)
