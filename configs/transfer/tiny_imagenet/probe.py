# A linear probe on Tiny-ImageNet at 32 x 32 pixels; see stl10/probe.py.
_base_ = ['../_base_/probe.py', '../../_base_/datasets/tiny_imagenet_32.py']
model = dict(head=dict(num_classes=200, topk=(1, 5)))
