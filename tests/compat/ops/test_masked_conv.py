"""Masked convolution beside a plain one."""

import pytest
import torch
from mmcv import ops


@pytest.mark.parametrize(('kernel', 'padding'), [((3, 3), (1, 1)), ((1, 1), (0, 0)), ((3, 1), (1, 0))])
def test_masked_conv_is_the_convolution_where_the_mask_is(kernel, padding):
    convolution = ops.MaskedConv2d(3, 5, kernel, padding=padding)
    feature, mask = torch.randn(1, 3, 6, 7), torch.rand(1, 6, 7) > 0.6
    with torch.no_grad():
        expected = convolution(feature) * mask
        torch.testing.assert_close(convolution(feature, mask), expected)
        assert not convolution(feature, torch.zeros_like(mask)).any()
