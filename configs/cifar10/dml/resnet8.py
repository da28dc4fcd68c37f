_base_ = '../resnet8.py'
model = dict(_delete_=True, type='kd_plugins.MutualLearning', student=_base_.model)
