# Two networks that start from the same ImageNet weights, and differ in their heads. Trained
# as resnet18.py, for comparison; the paper's training is that of mobilenet-v2_dml.py.
_base_ = './resnet18.py'
model = dict(_delete_=True, type='kd_plugins.MutualLearning', student=_base_.model)
