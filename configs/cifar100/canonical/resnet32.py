_base_ = './resnet20.py'
model = dict(backbone=dict(depth=32))
