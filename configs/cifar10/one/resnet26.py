_base_ = '../resnet26.py'
model = dict(_delete_=True, type='kd_plugins.NativeEnsemble', student=_base_.model)
