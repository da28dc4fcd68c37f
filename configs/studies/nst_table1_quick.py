_base_ = ['./nst_table1.py', './_base_/quick.py']
seeds = [0, 1, 2]
teacher_cache = True
replace = ['configs/_base_/schedules/cifar_quick.py']
networks = {
    'CIFAR-10': dict(replace=['configs/_base_/datasets/cifar10_batched.py'], overrides=_base_.few),
    'CIFAR-100': dict(replace=['configs/_base_/datasets/cifar100_batched.py'], overrides=_base_.few),
}
teachers = {
    'WRN-40-2, CIFAR-10': dict(replace=['configs/_base_/datasets/cifar10_batched.py'], overrides=_base_.teacher_few),
    'WRN-40-2, CIFAR-100': dict(replace=['configs/_base_/datasets/cifar100_batched.py'], overrides=_base_.teacher_few),
}
