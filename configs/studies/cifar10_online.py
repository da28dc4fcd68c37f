# The methods without a teacher, at the learning rate of cifar10_short.py, the baseline's best in cifar10_search.py, and
# at a third of it: several networks in one step may need a smaller one.
#
#     python tools/study.py configs/studies/cifar10_online.py --jobs 2 --only '*/seed0'
_base_ = './cifar10_short.py'
title = 'CIFAR-10, all images, 10 epochs, without a teacher'
rates = (0.1, 0.3)

networks = dict(
    _delete_=True,
    **{'ResNet-8': dict(config='configs/cifar10/resnet8.py', overrides=dict(_base_.curves, **_base_.draws))},
)
teachers = dict(_delete_=True)
teacher_cache = False
methods = dict(
    _delete_=True,
    **{
        f'{name}, lr {rate}': dict(_base_.methods[name], overrides=dict(optim_wrapper=dict(optimizer=dict(lr=rate))))
        for name in ('Baseline', 'ONE', 'DML')
        for rate in rates
    },
)
corruptions = dict(_delete_=True, clean=dict())
references = []
notes = f'Schedule: {_base_.epochs} epochs.'
