# Trained as the other methods of configs/cifar10, for comparison; ONE's own training is that of resnet32.py.
_base_ = '../resnet8.py'
model = dict(_delete_=True, type='kd_plugins.NativeEnsemble', student=_base_.model)
