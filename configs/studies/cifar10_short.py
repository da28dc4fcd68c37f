# cifar10.py in a third of its epochs, for a computer without a GPU: all images, ten epochs. Augmentations repeat at
# gamma=0.2 alone, after ten of its epochs.
#
#     python tools/study.py configs/studies/cifar10_short.py --jobs 2 --only '*/clean/*/seed0'
_base_ = './cifar10.py'
title = 'CIFAR-10, all images, 10 epochs'
epochs, epochs_first, epochs_imbalanced = 10, 4, 27

cosine, cosine_imbalanced = dict(_base_.cosine, end=epochs), dict(_base_.cosine, end=epochs_imbalanced)
common = dict(param_scheduler=[_base_.warm_up, cosine], train_cfg=dict(max_epochs=epochs))
first_stage = dict(
    param_scheduler=[_base_.warm_up, dict(_base_.cosine, end=epochs_first)], train_cfg=dict(max_epochs=epochs_first)
)
methods = {name: dict(first=dict(overrides=first_stage)) for name in ('FitNet', 'FSP', 'Hinton, two stages')}
imbalanced = dict(
    param_scheduler=[_base_.warm_up, cosine_imbalanced], train_cfg=dict(max_epochs=epochs_imbalanced, val_interval=3)
)
corruptions = {'gamma=0.2': dict(common=imbalanced)}
notes = (
    f'Schedule: {epochs} epochs, {epochs_imbalanced} at gamma=0.2, first stages {epochs_first}. BSS attacks 16 images '
    'of a batch. Published values, of full trainings: Sarfraz et al. 2020, Table III.'
)
