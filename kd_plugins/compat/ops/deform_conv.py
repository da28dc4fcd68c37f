"""Deformable convolution."""

from collections.abc import Callable

import torch
from torch import Tensor

from .precision import gradients, widen

_FAR = -(2.0**20)  # an offset that leads out of any picture


def _skipped(offset: Tensor, size: tuple[int, ...], kernel: tuple[int, ...], geometry: tuple[int, ...]) -> Tensor:
    """Return which points a deformable convolution skips, (B, G, kH, kW, H', W'): those not inside (−1, size)."""
    pairs = offset.unflatten(1, (-1, *kernel, 2))
    inside = torch.ones_like(pairs[..., 0, :, :], dtype=torch.bool)
    for axis, (stride, pad, dilation) in enumerate(zip(geometry[:2], geometry[2:4], geometry[4:], strict=True)):
        starts = torch.arange(offset.shape[2 + axis], device=offset.device) * stride - pad
        points = torch.arange(kernel[axis], device=offset.device) * dilation
        grid = points[:, None] + starts  # (kernel, output) along this axis
        grid = grid[:, None, :, None] if axis == 0 else grid[None, :, None, :]
        position = grid + pairs[..., axis, :, :]
        inside &= (position > -1) & (position < size[axis])
    return ~inside


def _as_read(maps: Tensor, size: tuple[int, ...], kernel: tuple[int, ...], geometry: tuple[int, ...]) -> Tensor:
    """Return maps that are larger than the output as mmcv reads them: each sample's first numbers, in the smaller size.

    DyHead passes such maps, and its published weights were trained with that.
    """
    height, width = (
        (n + 2 * pad - dilation * (k - 1) - 1) // stride + 1
        for n, k, stride, pad, dilation in zip(size, kernel, geometry[:2], geometry[2:4], geometry[4:], strict=True)
    )
    count = maps.shape[1] * height * width
    return maps.flatten(1)[:, :count].unflatten(1, (-1, height, width)) if maps[0].numel() > count else maps


def _deform_conv(
    geometry: tuple[int, ...], group: int, deformable_group: int
) -> Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], Tensor]:
    def convolve(
        input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        if mask is not None:
            offset, mask = (_as_read(x, input.shape[2:], weight.shape[2:], geometry) for x in (offset, mask))
        # mmcv skips a point at −1, its gradient too; torchvision has a gradient there, and reads out of bounds for NaN.
        # Far away both agree.
        kernel, undefined = weight.shape[2:], offset.isnan().any(1, keepdim=True)
        skipped = _skipped(offset, input.shape[2:], kernel, geometry)
        offset = offset.unflatten(1, (-1, *kernel, 2)).masked_fill(skipped[:, :, :, :, None], _FAR).flatten(1, 4)
        # Not torchvision's Python wrapper: it infers the groups from the shapes, so a wrong number would go unnoticed.
        output = torch.ops.torchvision.deform_conv2d(
            input,
            weight,
            offset,
            input.new_zeros(len(input), 1) if mask is None else mask,
            input.new_zeros(len(weight)) if bias is None else bias,
            *geometry,
            group,
            deformable_group,
            mask is not None,
        )
        return output.masked_fill(undefined, torch.nan)

    return convolve


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Deformable convolution: kernel point k at p reads the input at p + k + offset(p, k), bilinearly; 0 outside.

    A point at −1 or at the size of the input, or beyond, is outside, and has no gradient. Where an offset is NaN the
    output is NaN, so that a diverged training is noticed; mmcv takes 0 there.

    Args:
        input: Maps (B, C, H, W).
        weight: Weights (O, C / group, kH, kW).
        offset: Offsets (B, deformable_group · kH · kW · 2, H', W'), y before x, in pixels of the input.
        output: Written, (B, O, H', W').
        columns: Unused.
        ones: Unused.
        kW: Kernel width.
        kH: Kernel height.
        dW: Horizontal stride.
        dH: Vertical stride.
        padW: Zeros added left and right.
        padH: Zeros added above and below.
        dilationW: Columns between kernel points.
        dilationH: Rows between kernel points.
        group: Number of groups of channels with weights of their own.
        deformable_group: Number of groups of channels with offsets of their own.
        im2col_step: Unused.
    """
    convolve = _deform_conv((dH, dW, padH, padW, dilationH, dilationW), group, deformable_group)
    output.copy_(convolve(*widen(input, offset, weight)))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Write the gradients of :func:`deform_conv_forward` with respect to input and offset."""
    convolve = _deform_conv((dH, dW, padH, padW, dilationH, dilationW), group, deformable_group)
    grad_input, grad_offset, _ = gradients(convolve, (input, offset, weight), gradOutput)
    gradInput.copy_(grad_input)
    gradOffset.copy_(grad_offset)


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Write ``scale`` times the gradient of :func:`deform_conv_forward` with respect to its weight.

    The weight is no argument: the convolution is linear in it, so that its gradient does not depend on it.
    """
    convolve = _deform_conv((dH, dW, padH, padW, dilationH, dilationW), group, deformable_group)
    *_, grad_weight = gradients(convolve, (input, offset, torch.zeros_like(gradWeight)), gradOutput)
    gradWeight.copy_(scale * grad_weight)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Deformable convolution as :func:`deform_conv_forward`, every sample times mask(p, k), plus a bias.

    Maps of offsets and masks that are larger than the output are read as by mmcv, see :func:`_as_read`.

    Args:
        input: Maps (B, C, H, W).
        weight: Weights (O, C / group, kernel_h, kernel_w).
        bias: Bias (O,); unused without ``with_bias``.
        ones: Unused.
        offset: Offsets (B, deformable_group · kernel_h · kernel_w · 2, H', W'), y before x, in pixels of the input.
        mask: Factors (B, deformable_group · kernel_h · kernel_w, H', W').
        output: Written, (B, O, H', W').
        columns: Unused.
        kernel_h: Kernel height.
        kernel_w: Kernel width.
        stride_h: Vertical stride.
        stride_w: Horizontal stride.
        pad_h: Zeros added above and below.
        pad_w: Zeros added left and right.
        dilation_h: Rows between kernel points.
        dilation_w: Columns between kernel points.
        group: Number of groups of channels with weights of their own.
        deformable_group: Number of groups of channels with offsets and masks of their own.
        with_bias: Whether to add the bias.
    """
    convolve = _deform_conv((stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w), group, deformable_group)
    tensors = (input, offset, weight, mask, bias) if with_bias else (input, offset, weight, mask)
    output.copy_(convolve(*widen(*tensors)))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write the gradients of :func:`modulated_deform_conv_forward`."""
    convolve = _deform_conv((stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w), group, deformable_group)
    tensors = (input, offset, weight, mask, bias) if with_bias else (input, offset, weight, mask)
    targets = (grad_input, grad_offset, grad_weight, grad_mask, grad_bias)
    # Without a bias there is one gradient fewer than targets.
    for target, gradient in zip(targets, gradients(convolve, tensors, grad_output), strict=False):
        target.copy_(gradient)
