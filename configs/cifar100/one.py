# ONE: a network whose branches teach each other, without a teacher, trained as the other methods here for comparison:
#
#     NETWORK=wrn-16-2 python tools/train.py configs/cifar100/one.py
#
# resnet32_one.py has that of its authors.
_base_ = './{{$NETWORK:resnet8}}.py'
variant = '{{$NETWORK:resnet8}}'
model = dict(_delete_=True, type='kd_plugins.NativeEnsemble', student=_base_.model)
