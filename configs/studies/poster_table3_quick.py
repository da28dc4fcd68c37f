_base_ = ['./poster_table3.py', './_base_/quick.py']
seeds = [0, 1, 2]
methods = {'BSS': dict(terms=['bss_quick'])}
teacher_cache = True
teachers = {'WRN-40-2': dict(overrides=_base_.teacher_few)}
networks = {name: dict(overrides=_base_.draws) for name in ('ResNet-8', 'ResNet-14', 'ResNet-20', 'ResNet-26')} | {
    name: dict(overrides=_base_.few) for name in ('WRN-10-2', 'WRN-16-2', 'WRN-28-2', 'WRN-40-2')
}
notes = 'BSS attacks 16 images of a batch. ' + _base_.notes
