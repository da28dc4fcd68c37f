_base_ = './resnet20.py'
model = dict(backbone=dict(depth=8, width=64, stem_channels=32), head=dict(in_channels=256))
