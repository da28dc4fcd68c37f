# Two networks that start from the same ImageNet weights, and differ in their heads.
_base_ = './resnet18.py'
model = dict(_delete_=True, type='kd_plugins.MutualLearning', student=_base_.model)
