# Label noise of Sarfraz et al. 2020: twelve methods, WRN-16-2 on CIFAR-10. Noise draws from all classes, the true one
# included, as in the authors' later library; include_true=False leaves that out.
_base_ = './_base_/poster.py'

title = 'CIFAR-10 with label noise, WRN-16-2'
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
    'sigma=0': dict(),
    'sigma=0.2': dict(label_noise=dict(rate=0.2)),
    'sigma=0.4': dict(label_noise=dict(rate=0.4)),
    'sigma=0.6': dict(label_noise=dict(rate=0.6)),
}
# Not stated there: on which data the teacher was trained. With nine tenths of its loss from a teacher that saw clean
# labels, Hinton's student would hardly fall to 58 % at sigma = 0.6.
teacher_data = 'same'
seeds = [0, 1, 2, 3, 4]
references = [dict(network='WRN-16-2', table=_base_.poster_noise)]
notes = (
    'With probability sigma a label is replaced by a class drawn from all ten. Published values: Sarfraz et al. 2020; '
    "the teacher and the teacher's data are not stated there."
)
