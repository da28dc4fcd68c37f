# Every method on a laptop: CIFAR-10, two students, clean and noisy training data, three seeds.
#
#     python tools/study.py configs/studies/quick.py --jobs 2
#
# The schedule is in _base_/quick.py; quick_imbalance.py has the imbalanced data. Published values are of full
# trainings, for orientation alone.
_base_ = ['./_base_/poster.py', './_base_/quick.py']

title = 'CIFAR-10, a short schedule'
# 'same': a teacher for each kind of training data; 'clean': one alone, which would tell students the true labels.
teacher_data = 'same'
# All seeds see the same crops and flips, in other orders, so that a teacher answers once.
teacher_cache = True
draws = dict(train_dataloader=dict(dataset=dict(seed=0)))
teachers = {
    'ResNet-26': dict(config='configs/cifar10/resnet26.py'),
    'WRN-28-2': dict(
        config='configs/cifar10/wrn-28-2.py',
        overrides=dict(train_dataloader=dict(dataset=dict(dataset=dict(indices=15000))))),
}
networks = {
    'ResNet-8': dict(config='configs/cifar10/resnet8.py', teacher='ResNet-26', overrides=draws),
    # Eight times the arithmetic of ResNet-8, and its teacher four times that of ResNet-26: fewer images for both.
    'WRN-16-2': dict(
        config='configs/cifar10/wrn-16-2.py', teacher='WRN-28-2', terms_from='configs/_base_/methods_wrn.py',
        overrides=dict(train_dataloader=dict(batch_size=64, dataset=dict(seed=0, dataset=dict(indices=2000))))),
}
methods = {
    'BSS': dict(terms=['bss_quick']),
    # Beside the poster's: NST, and the baseline with as many steps as FitNet and FSP have in their two stages.
    'NST poly': dict(terms=['nst_poly']),
    'Baseline, two stages': dict(first=dict()),
}
corruptions = {
    'clean': dict(),
    'sigma=0.4': dict(label_noise=dict(rate=0.4)),
}
seeds = [0, 1, 2]
columns = 'network'
references = [
    dict(corruption='clean', table=_base_.poster_table3),
    dict(network='WRN-16-2', table=_base_.poster_noise),
]
notes = 'Published values: Sarfraz et al. 2020.'
