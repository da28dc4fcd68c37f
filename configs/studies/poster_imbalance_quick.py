_base_ = ['./poster_imbalance.py', './_base_/quick.py']
seeds = [0, 1, 2]
