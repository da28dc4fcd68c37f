# Every method on a laptop: CIFAR-10, two students, clean, noisy and imbalanced training data, three seeds.
#
#     python tools/study.py configs/studies/quick.py --jobs 2
#
# The schedule is in _base_/quick.py. Published values are of full trainings, for orientation alone.
_base_ = ['./_base_/poster.py', './_base_/quick.py']

title = 'CIFAR-10, a short schedule'
# 'same': a teacher for each kind of training data; 'clean': one alone, which would reveal the true labels to students.
teacher_data = 'same'
teacher_cache = True
teachers = {
    'ResNet-26': dict(config='configs/cifar10/resnet26.py'),
    'WRN-28-2': dict(config='configs/cifar10/wrn-28-2.py', overrides=_base_.teacher_few),
}
networks = {
    'ResNet-8': dict(
        config='configs/cifar10/resnet8.py',
        teacher='ResNet-26',
        overrides=dict(_base_.curves, train_cfg=dict(val_interval=2), **_base_.draws),
    ),
    'WRN-16-2': dict(
        config='configs/cifar10/wrn-16-2.py',
        teacher='WRN-28-2',
        terms_from='configs/_base_/methods_wrn.py',
        overrides=_base_.few,
        methods=_base_.wide,
    ),
}
methods = {
    'BSS': dict(terms=['bss_quick']),
    # Beside the poster's: NST, by its kernel and by an adversary; and, in as many steps as FitNet and FSP have in two
    # stages, what these two have in their second.
    'NST poly': dict(terms=['nst_poly']),
    'NST adversary': dict(terms=['nst_gan']),
    'Hinton, two stages': dict(first='Baseline', **_base_.hinton),
}
# At gamma = 0.2 CIFAR-10 keeps 8,662 images, 5,000 of them of one class: ResNet-8 sees all of them, WRN-16-2 the first
# 1,600, in more epochs, since four would teach that class alone.
epochs_imbalanced, teacher_epochs_imbalanced = 5, 8
imbalanced = dict(
    train_dataloader=dict(dataset=dict(dataset=dict(indices=None))),
    param_scheduler=[_base_.warm_up, dict(_base_.cosine, end=epochs_imbalanced)],
    train_cfg=dict(max_epochs=epochs_imbalanced, val_interval=epochs_imbalanced),
)
teacher_imbalanced = dict(
    param_scheduler=[_base_.warm_up, dict(_base_.cosine, end=teacher_epochs_imbalanced)],
    train_cfg=dict(max_epochs=teacher_epochs_imbalanced, val_interval=teacher_epochs_imbalanced),
)
corruptions = {
    'clean': dict(),
    'sigma=0.4': dict(label_noise=dict(rate=0.4)),
    'gamma=0.2': dict(imbalance=dict(gamma=0.2), common=imbalanced, teacher_common=teacher_imbalanced),
}
seeds = [0, 1, 2]
columns = 'network'
references = [
    dict(corruption='clean', table=_base_.poster_table3),
    dict(network='WRN-16-2', table=_base_.poster_noise),
    dict(network='WRN-16-2', table=_base_.poster_imbalance),
]
notes = (
    f'BSS attacks 16 images of a batch. At gamma=0.2 there are fewer images and more epochs: {epochs_imbalanced}, of '
    f'teachers {teacher_epochs_imbalanced}, where the others have {_base_.epochs} and {_base_.teacher_epochs}. '
    'Published values: Sarfraz et al. 2020; the network of the imbalance table is '
    'not stated there, WRN-16-2 is assumed.'
)
