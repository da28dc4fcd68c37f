# The poster's study on all of CIFAR-10: ResNet-8 from ResNet-26, clean, noisy and imbalanced labels, three seeds, a
# schedule of 30 epochs.
#
#     python tools/study.py configs/studies/cifar10.py --jobs 2 --only '*/seed0'
#
# About eight core hours a condition and seed. _base_/full.py has the schedule, _base_/searched.py the weights, and
# cifar10_search.py what both rest on.
_base_ = ['./_base_/poster.py', './_base_/full.py']

title = 'CIFAR-10, all images, 30 epochs'
teachers = {'ResNet-26': dict(config='configs/cifar10/resnet26.py')}
networks = {
    'ResNet-8': dict(
        config='configs/cifar10/resnet8.py',
        teacher='ResNet-26',
        terms_from='configs/studies/_base_/searched.py',
        overrides=dict(_base_.curves, **_base_.draws),
    ),
}
hinton = dict(_base_.hinton, overrides=dict(model=dict(head=dict(loss=dict(loss_weight=0.4)))))
# 500,000 outputs of whole maps would fill a disk: these teachers run.
hints = dict(hook=dict(task=False), overrides=_base_.first_stage, teacher_cache=False)
methods = {
    'Hinton': hinton,
    'BSS': dict(terms=['bss_quick']),
    'FitNet': dict(first=dict(terms=['fitnet'], **hints), **hinton),
    'FSP': dict(first=dict(terms=['fsp'], **hints), **hinton),
    'AT': dict(teacher_cache=False),
    'SP': dict(teacher_cache=False),
    'NST linear': dict(terms=['nst_linear']),
    'NST poly': dict(terms=['nst_poly']),
    'NST Gaussian': dict(terms=['nst_gaussian']),
    'KD + NST poly': dict(terms=['kd_alpha', 'nst_poly'], overrides=hinton['overrides']),
    # As many steps as FitNet and FSP have, and Hinton's loss in the second stage, but no hint in the first.
    'Hinton, two stages': dict(first=dict(overrides=_base_.first_stage), **hinton),
}
# At gamma = 0.2 8,662 images are left, 5,000 of them of one class: more epochs of fewer images.
imbalanced = dict(
    param_scheduler=[_base_.warm_up, dict(_base_.cosine, end=_base_.epochs_imbalanced)],
    train_cfg=dict(max_epochs=_base_.epochs_imbalanced, val_interval=4),
)
corruptions = {
    'clean': dict(),
    'sigma=0.4': dict(label_noise=dict(rate=0.4)),
    'gamma=0.2': dict(imbalance=dict(gamma=0.2), common=imbalanced),
}
# A teacher for each kind of training data: one that has seen the true labels would reveal them.
teacher_data = 'same'
teacher_cache = True
seeds = [0, 1, 2]
columns = 'corruption'
references = [dict(corruption='clean', table=_base_.poster_table3)]
notes = (
    f'Schedule: {_base_.epochs} epochs, {_base_.epochs_imbalanced} at gamma=0.2, first stages {_base_.epochs_first}. '
    'BSS attacks 16 images of a batch. Published values: Sarfraz et al. 2020, Table III.'
)
