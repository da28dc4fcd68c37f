# Trained as the other methods of configs/cifar100, for comparison; ONE's own training is that of resnet32.py.
_base_ = '../resnet26.py'
model = dict(_delete_=True, type='kd_plugins.NativeEnsemble', student=_base_.model)
