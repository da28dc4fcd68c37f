# On the short schedule of configs/market1501_sample, not its paper's.
_base_ = './student.py'
model = dict(_delete_=True, type='kd_plugins.MutualLearning', student=_base_.model)
