_base_ = './resnet50.py'
model = dict(neck=dict(type='GeneralizedMeanPooling'))
