_base_ = ['./poster_table4.py', './_base_/quick.py']
seeds = [0, 1, 2]
replace = ['configs/_base_/datasets/cifar100_batched.py', 'configs/_base_/schedules/cifar_quick.py']
