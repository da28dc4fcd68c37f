_base_ = ['./poster_noise.py', './_base_/quick.py']
seeds = [0, 1, 2]
