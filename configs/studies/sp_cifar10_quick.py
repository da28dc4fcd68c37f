_base_ = ['./sp_cifar10.py', './_base_/quick.py']
seeds = [0, 1, 2]
teacher_cache = True
teachers = {name: dict(overrides=_base_.teacher_few) for name in ('WRN-40-1', 'WRN-16-2', 'WRN-40-2', 'WRN-16-8')}
networks = {
    name: dict(overrides=_base_.few)
    for name in ('16-1 < 40-1', '16-1 < 16-2', '16-2 < 40-2', '16-2 < 16-8', '40-2 < 16-8')
}
