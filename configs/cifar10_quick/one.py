# On the short schedule of configs/cifar10_quick, not its paper's.
_base_ = './student.py'
model = dict(_delete_=True, type='kd_plugins.NativeEnsemble', student=_base_.model)
