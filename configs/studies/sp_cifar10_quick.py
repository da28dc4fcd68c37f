_base_ = ['./sp_cifar10.py', './_base_/quick.py']
seeds = [0, 1, 2]
