_base_ = ['./poster_table4.py', './_base_/quick.py']
seeds = [0, 1, 2]
replace = ['configs/_base_/datasets/cifar100_batched.py', 'configs/_base_/schedules/cifar_quick.py']
methods = {'BSS': dict(terms=['bss_quick'])}
teacher_cache = True
# ResNets of 16 to 64 channels, a sixteenth of the arithmetic.
narrow = dict(model=dict(backbone=dict(width=16), head=dict(in_channels=64)))
teachers = {'ResNet-26': dict(overrides=narrow), 'WRN-40-2': dict(overrides=_base_.teacher_few)}
networks = {
    name: dict(overrides=dict(narrow, **_base_.draws)) for name in ('ResNet-8', 'ResNet-14', 'ResNet-20', 'ResNet-26')
} | {name: dict(overrides=_base_.few) for name in ('WRN-10-2', 'WRN-16-2', 'WRN-28-2', 'WRN-40-2')}
notes = 'BSS attacks 16 images of a batch; the ResNets here have 16, 32 and 64 channels. ' + _base_.notes.replace(
    ' (here 64, 128 and 256 channels)', ''
)
