_base_ = './student.py'
model = dict(_delete_=True, type='kd_plugins.MutualLearning', student=_base_.model)
