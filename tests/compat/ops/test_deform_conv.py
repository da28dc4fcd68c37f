"""Deformable convolution against plain loops in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from mmcv import ops

GEOMETRY = dict(stride=(2, 1), padding=(1, 2), dilation=(1, 2))


def deformable_inputs(groups: int, deform_groups: int):
    feature = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    weight = torch.randn(6, 4 // groups, 3, 2, dtype=torch.float64)
    height, width = F.conv2d(feature, weight, groups=groups, **GEOMETRY).shape[2:]
    offset = torch.randn(2, deform_groups * 12, height, width, dtype=torch.float64)
    mask = torch.rand(2, deform_groups * 6, height, width, dtype=torch.float64)
    return [t.requires_grad_() for t in (feature, offset, mask, weight, torch.randn(6, dtype=torch.float64))]


def loop_deform_conv(feature, offset, mask, weight, bias, groups, deform_groups):
    """Every sample by hand, zeros outside the image; the channels of a group at a time."""
    padded = F.pad(feature, (1, 1, 1, 1))
    height, width = feature.shape[2:]
    kernel_height, kernel_width = weight.shape[2:]
    (stride_y, stride_x), (pad_y, pad_x), (dilation_y, dilation_x) = GEOMETRY.values()
    output = []
    in_group, out_group, deform_group = (n // g for n, g in ((4, groups), (6, groups), (4, deform_groups)))
    for b in range(len(feature)):
        for row in range(offset.shape[2]):
            for column in range(offset.shape[3]):
                total = bias
                for c in range(4):
                    for i in range(kernel_height):
                        for j in range(kernel_width):
                            point = (c // deform_group) * kernel_height * kernel_width + i * kernel_width + j
                            dy, dx = offset[b, 2 * point : 2 * point + 2, row, column]
                            y = row * stride_y - pad_y + i * dilation_y + dy
                            x = column * stride_x - pad_x + j * dilation_x + dx
                            if not (-1 < y < height and -1 < x < width):
                                continue
                            top, left = math.floor(y.item()), math.floor(x.item())
                            v, h = y - top, x - left
                            patch = padded[b, c, top + 1 : top + 3, left + 1 : left + 3]
                            value = torch.stack([1 - v, v]) @ patch @ torch.stack([1 - h, h])
                            if mask is not None:
                                value = value * mask[b, point, row, column]
                            group = c // in_group
                            inside = torch.arange(6) // out_group == group
                            total = total + torch.where(inside, weight[:, c % in_group, i, j], 0) * value
                output.append(total)
    return torch.stack(output).reshape(len(feature), *offset.shape[2:], 6).permute(0, 3, 1, 2)


@pytest.mark.parametrize(('groups', 'deform_groups'), [(1, 1), (2, 1), (1, 2), (2, 4)])
def test_deform_conv_without_offset_is_convolution(groups, deform_groups):
    feature, offset, mask, weight, bias = deformable_inputs(groups, deform_groups)
    zero, one = torch.zeros_like(offset), torch.ones_like(mask)
    geometry = (*GEOMETRY.values(), groups, deform_groups)
    expected = F.conv2d(feature, weight, groups=groups, **GEOMETRY)
    torch.testing.assert_close(ops.deform_conv2d(feature, zero, weight, *geometry), expected)
    modulated = ops.modulated_deform_conv2d(feature, zero, one / 2, weight, bias, *geometry)
    torch.testing.assert_close(modulated, expected / 2 + bias[:, None, None])


def test_integer_offset_shifts_the_input():
    # Every kernel point one down and two to the left: the same as convolving the image moved the other way.
    feature, weight = torch.randn(1, 3, 8, 8), torch.randn(2, 3, 3, 3)
    offset = torch.tensor([1.0, -2.0]).repeat(9)[None, :, None, None].expand(1, 18, 8, 8)
    shifted = F.pad(feature, (2, 0, 0, 1))[:, :, 1:, :8]
    expected = F.conv2d(shifted, weight, padding=1)
    output = ops.deform_conv2d(feature, offset, weight, 1, 1)
    torch.testing.assert_close(output[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('groups', 'deform_groups'), [(1, 2), (2, 1)])
def test_deform_conv_by_hand(groups, deform_groups):
    feature, offset, _, weight, bias = inputs = deformable_inputs(groups, deform_groups)
    geometry = (*GEOMETRY.values(), groups, deform_groups)
    expected = loop_deform_conv(*inputs, groups, deform_groups)
    output = ops.modulated_deform_conv2d(*inputs, *geometry)
    torch.testing.assert_close(output, expected)
    direction = torch.randn_like(output)
    for got, want in zip(*(torch.autograd.grad(y, inputs, direction) for y in (output, expected)), strict=True):
        torch.testing.assert_close(got, want)
        assert got.abs().sum() > 0

    without_mask = (feature, offset, weight)
    expected = loop_deform_conv(feature, offset, None, weight, torch.zeros_like(bias), groups, deform_groups)
    output = ops.deform_conv2d(*without_mask, *geometry)
    torch.testing.assert_close(output, expected)
    for got, want in zip(*(torch.autograd.grad(y, without_mask, direction) for y in (output, expected)), strict=True):
        torch.testing.assert_close(got, want)


def test_a_point_at_the_border_of_the_padding_has_no_gradient():
    # All offsets are whole numbers, as where a layer starts from 0: many points lie at -1 and at the size of the input.
    inputs = list(deformable_inputs(1, 1))
    inputs[1] = torch.randint(-1, 2, inputs[1].shape, dtype=torch.float64).requires_grad_()
    expected = loop_deform_conv(*inputs, 1, 1)
    output = ops.modulated_deform_conv2d(*inputs, *GEOMETRY.values())
    torch.testing.assert_close(output, expected)
    direction = torch.randn_like(output)
    for got, want in zip(*(torch.autograd.grad(y, inputs, direction) for y in (output, expected)), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf, 1e30])
def test_an_offset_that_is_no_number_does_not_end_the_process(value):
    feature, offset, mask, weight, bias = (x.detach().requires_grad_() for x in deformable_inputs(1, 1))
    expected = ops.modulated_deform_conv2d(feature, offset, mask, weight, bias, *GEOMETRY.values())
    with torch.no_grad():
        offset[0, 4, 1, 2] = value
    output = ops.modulated_deform_conv2d(feature, offset, mask, weight, bias, *GEOMETRY.values())
    output.nansum().backward()
    changed = output != expected
    assert changed[0, :, 1, 2].all()
    assert changed.sum() == 6
    assert output[0, :, 1, 2].isnan().all() == math.isnan(value)
    assert all(x.grad.isfinite().all() for x in (feature, offset, mask, weight, bias))
    assert offset.grad[0, 4:6, 1, 2].tolist() == [0, 0]  # the point is outside, in both directions


def test_larger_offset_maps_are_read_as_mmcv_reads_them():
    # mmcv takes a sample's first numbers for maps of the output's size, and DyHead trains with that.
    feature, offset, mask, weight, bias = deformable_inputs(1, 1)
    large = [F.pad(x.detach(), (0, 3, 0, 2), value=0.3).requires_grad_() for x in (offset, mask)]
    small = [
        torch.stack([sample.flatten()[: x[0].numel()].view_as(x[0]) for sample in y])
        for x, y in zip((offset, mask), large, strict=True)
    ]
    outputs = [ops.modulated_deform_conv2d(feature, *maps, weight, bias, *GEOMETRY.values()) for maps in (large, small)]
    torch.testing.assert_close(*outputs, rtol=0, atol=0)
    direction = torch.randn_like(outputs[0])
    for got, want in zip(*(torch.autograd.grad(y, large, direction) for y in outputs), strict=True):
        torch.testing.assert_close(got, want)
        assert got.any()


def test_modulated_deform_conv_without_bias():
    feature, offset, mask, weight, _ = deformable_inputs(1, 1)
    inputs = (feature[:1, :, :4, :4], offset[:1, :, :2, :6], mask[:1, :, :2, :6], weight)
    inputs = [t.detach().requires_grad_() for t in inputs]

    def convolve(*tensors):
        return ops.modulated_deform_conv2d(*tensors, None, *GEOMETRY.values())

    assert torch.autograd.gradcheck(convolve, inputs)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_deform_conv_in_half_precision(dtype):
    feature, offset, _, weight, _ = (t.detach().to(dtype).requires_grad_() for t in deformable_inputs(1, 1))
    inputs = (feature, offset, weight)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    outputs = [ops.deform_conv2d(*tensors, *GEOMETRY.values()) for tensors in (inputs, wide)]
    assert outputs[0].dtype == dtype
    tolerance = dict(rtol=2e-2, atol=1e-1)
    torch.testing.assert_close(outputs[0].double(), outputs[1], **tolerance)
    for y in outputs:
        y.sum().backward()
    for narrow, reference in zip(inputs, wide, strict=True):
        torch.testing.assert_close(narrow.grad.double(), reference.grad, **tolerance)


def test_wrong_deform_groups_do_not_pass_unseen():
    feature, offset, _, weight, _ = deformable_inputs(1, 1)
    with pytest.raises(RuntimeError, match='offset'):
        ops.deform_conv2d(feature, offset, weight, *GEOMETRY.values(), 1, 2)
