# DML: two networks that teach each other, without a teacher, trained as the other methods here for comparison:
#
#     NETWORK=wrn-16-2 python tools/train.py configs/cifar10/dml.py
#
# resnet32_dml.py of cifar100 has the training of its paper.
_base_ = './{{$NETWORK:resnet8}}.py'
variant = '{{$NETWORK:resnet8}}'
model = dict(_delete_=True, type='kd_plugins.MutualLearning', student=_base_.model)
