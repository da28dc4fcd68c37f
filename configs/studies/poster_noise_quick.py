_base_ = ['./poster_noise.py', './_base_/quick.py']
seeds = [0, 1, 2]
methods = {'BSS': dict(terms=['bss_quick'])}
teacher_cache = True
teachers = {'WRN-40-2': dict(overrides=_base_.teacher_few)}
networks = {'WRN-16-2': dict(overrides=_base_.few)}
notes = 'BSS attacks 16 images of a batch. ' + _base_.notes
