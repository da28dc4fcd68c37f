"""Deformable attention against plain loops in float64."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction


def test_deformable_attention_by_hand():
    shapes = torch.tensor([[4, 5], [2, 3]])
    value = torch.randn(2, 26, 2, 3, dtype=torch.float64, requires_grad=True)
    locations = (torch.rand(2, 3, 2, 2, 2, 2, dtype=torch.float64) * 1.4 - 0.2).requires_grad_()
    weights = torch.rand(2, 3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    expected = torch.zeros(2, 3, 2, 3, dtype=torch.float64)
    for b, query, head, level, point in np.ndindex(2, 3, 2, 2, 2):
        height, width = shapes[level].tolist()
        plane = value[b, :20] if level == 0 else value[b, 20:]
        plane = F.pad(plane[:, head].T.reshape(3, height, width), (1, 1, 1, 1))
        x, y = locations[b, query, head, level, point] * torch.tensor([width, height]) - 0.5
        if -1 < y < height and -1 < x < width:
            top, left = math.floor(y.item()), math.floor(x.item())
            v, h = y - top, x - left
            patch = plane[:, top + 1 : top + 3, left + 1 : left + 3]
            sample = torch.stack([1 - v, v]) @ patch @ torch.stack([1 - h, h])
            expected[b, query, head] = expected[b, query, head] + weights[b, query, head, level, point] * sample
    starts = torch.tensor([0, 20])
    output = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)
    torch.testing.assert_close(output, expected.flatten(2))
    direction, inputs = torch.randn_like(output), (value, locations, weights)
    gradients = (torch.autograd.grad(y, inputs, direction) for y in (output, expected.flatten(2)))
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want)
