# Table VI of Sarfraz et al. 2020: twelve methods, CIFAR-10 with classes from 5000 down to 250 images. The network is
# not stated; WRN-16-2, that of their label noise, is assumed.
_base_ = './_base_/poster.py'

title = 'CIFAR-10 with class imbalance, WRN-16-2'
teachers = {'WRN-40-2': dict(config='configs/cifar10/wrn-40-2.py', overrides=_base_.sgd)}
terms_from = 'configs/_base_/methods_wrn.py'
networks = {
    'WRN-16-2': dict(
        config='configs/cifar10/wrn-16-2.py',
        teacher='WRN-40-2',
        overrides=dict(_base_.curves, **_base_.sgd),
        methods=_base_.wide,
    ),
}
corruptions = {
    'gamma=0.2': dict(imbalance=dict(gamma=0.2)),
    'gamma=0.6': dict(imbalance=dict(gamma=0.6)),
    'gamma=1': dict(imbalance=dict(gamma=1)),
    'gamma=2': dict(imbalance=dict(gamma=2)),
}
# Not stated there: on which data the teacher was trained. One of balanced data would pass on what
# its students lack, and Hinton's gain of one point is small for that.
teacher_data = 'same'
seeds = [0, 1, 2, 3, 4]
references = [dict(network='WRN-16-2', table=_base_.poster_imbalance)]
notes = (
    'Classes fall from 5000 to 250 images, the faster the smaller gamma. Published values: Sarfraz et al. 2020, Table '
    "VI; the network, the teacher and the teacher's data are not stated there."
)
