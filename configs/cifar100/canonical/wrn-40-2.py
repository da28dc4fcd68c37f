_base_ = './wrn-16-2.py'
model = dict(backbone=dict(depth=40))
