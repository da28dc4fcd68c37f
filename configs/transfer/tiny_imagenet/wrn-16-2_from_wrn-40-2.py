# The student that a method made on CIFAR-100, in a table beside the teacher and the student alone:
#
#     METHOD=kd+nst_poly python tools/train.py configs/transfer/tiny_imagenet/wrn-16-2_from_wrn-40-2.py
_base_ = './probe.py'
from kd_plugins.config import trained

variant = '{{$METHOD:kd}}'
name = variant
requires = [trained('configs/cifar100/wrn-16-2_from_wrn-40-2.py', variant)]
model = dict(backbone=dict(init_cfg=dict(checkpoint=requires[0]['checkpoint'])))
compare = {
    'teacher': 'configs/transfer/tiny_imagenet/teacher.py',
    'student alone': 'configs/transfer/tiny_imagenet/baseline.py',
}
