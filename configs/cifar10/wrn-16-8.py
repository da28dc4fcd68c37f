_base_ = './wrn-16-2.py'
model = dict(backbone=dict(depth=16, widen_factor=8), head=dict(in_channels=512))
