# resnet18_from_resnet50_kd.py, as a model instead of a hook: the same losses and the same weights.
_base_ = '../_base_/pairs/market1501_resnet18_from_resnet50.py'
model = dict(
    _delete_=True,
    type='kd_plugins.Distiller',
    student=_base_.model,
    teacher=_base_.teacher,
    terms=_base_.methods.kd,
    input_shape=(3, 256, 128),
)
