_base_ = './resnet8.py'
model = dict(backbone=dict(depth=14))
