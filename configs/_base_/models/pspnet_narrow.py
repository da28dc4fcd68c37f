# A PSPNet for small images and a CPU: a narrow ResNet-18 from random weights, which strides by 8, and a head of 32
# channels.
_base_ = 'mmseg::_base_/models/pspnet_r50-d8.py'

norm = dict(type='BN', requires_grad=True)
model = dict(
    pretrained=None,
    backbone=dict(depth=18, stem_channels=16, base_channels=16, norm_cfg=norm),
    decode_head=dict(in_channels=128, channels=32, norm_cfg=norm),
    auxiliary_head=dict(in_channels=64, channels=16, norm_cfg=norm),
)
