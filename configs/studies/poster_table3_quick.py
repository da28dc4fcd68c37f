_base_ = ['./poster_table3.py', './_base_/quick.py']
seeds = [0, 1, 2]
