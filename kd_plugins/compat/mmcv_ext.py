"""The operators detectors need from ``mmcv._ext``, for an mmcv that was installed without compiled ones.

Names, argument names and results are those of mmcv's compiled module: most operators return nothing and write into
tensors the caller has allocated, and the arguments that are only scratch space there are left alone here. Everything
runs on whatever device its tensors are on; types below float32 are computed in float32 and rounded once at the end.

Sources: mmcv's ``mmcv/ops`` (interface and definitions); torchvision's ``torchvision.ops`` (the work).
"""

from collections.abc import Callable
from functools import reduce
from typing import NoReturn

import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

from kd_plugins.errors import UserError

# The build needs to see torch, hence no isolation; pip may have kept a wheel built without operators, hence no cache.
FULL_BUILD = (
    "pip install 'setuptools>=77,<82' ninja && MMCV_WITH_OPS=1 pip install --force-reinstall --no-deps "
    '--no-cache-dir --no-build-isolation --no-binary onedl-mmcv onedl-mmcv'
)


def missing(operator: str) -> UserError:
    """Return the error for an operator that is not here."""
    return UserError(
        f'mmcv operator {operator}: expected a compiled mmcv, got the stand-in through torchvision, which lacks it; '
        f'build the full mmcv with: {FULL_BUILD}'
    )


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """Stand in for every other operator: mmcv only asks for its presence at import, the call tells it is missing."""
    if name.startswith('_'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def operator(*args: object, **kwargs: object) -> NoReturn:
        raise missing(name)

    return operator


def get_compiler_version() -> str:
    """Say that nothing was compiled for mmcv."""
    return f'none (operators of torchvision {torchvision.__version__})'


def get_compiling_cuda_version() -> str:
    """Say that nothing was compiled for mmcv."""
    return get_compiler_version()


_FAR = -(2.0**20)  # an offset that leads out of any picture


def _widen(*tensors: Tensor) -> list[Tensor]:
    dtype = reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    return [t.to(dtype) for t in tensors]


def _gradients(function: Callable[..., Tensor], tensors: tuple[Tensor, ...], grad_output: Tensor) -> tuple[Tensor, ...]:
    """Return d(sum(grad_output · function(*tensors))) / d(each tensor)."""
    grad_output, *tensors = _widen(grad_output, *tensors)
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in tensors]
        return torch.autograd.grad(function(*leaves), leaves, grad_output)


def _grow(boxes: Tensor, offset: int) -> Tensor:
    """Turn the inclusive corners of ``offset=1`` (width = x2 − x1 + 1) into continuous ones."""
    return boxes + boxes.new_tensor([0, 0, offset, offset])


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy non-maximum suppression: a box goes if its IoU with a kept, better one is above the threshold.

    Args:
        boxes: (N, 4), x1 y1 x2 y2.
        scores: (N,).
        iou_threshold: largest IoU two kept boxes may have.
        offset: widths and heights are x2 − x1 + offset; 0 or 1.

    Returns:
        Indices of the kept boxes, best first.
    """
    boxes, scores = _widen(boxes, scores)
    # Rounded as the IoUs are: a float32 0.3 is above the double 0.3, yet not above 0.3.
    iou_threshold = torch.tensor(iou_threshold, dtype=boxes.dtype).item()
    return torchvision.ops.nms(_grow(boxes, offset), scores, iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS: take the best box, scale down the scores of the others by their IoU with it, and so on.

    The factor is, by ``method``: 0 (naive) 0 where IoU ≥ threshold; 1 (linear) 1 − IoU where IoU ≥ threshold;
    2 (gaussian) exp(−IoU² / sigma). A box whose score falls below ``min_score`` is dropped.

    Args:
        boxes: (N, 4), x1 y1 x2 y2.
        scores: (N,).
        dets: (N, 5), written: the kept boxes with their scores when taken, in that order, in the first rows.
        iou_threshold: see above.
        sigma: see above.
        min_score: see above.
        method: see above.
        offset: widths and heights are x2 − x1 + offset; 0 or 1.

    Returns:
        Indices of the kept boxes, in the order of ``dets``.
    """
    corners, scores = _widen(boxes, scores)
    corners, scores = _grow(corners, offset), scores.clone()
    remaining = torch.arange(len(boxes), device=boxes.device)
    kept = []
    while len(remaining):
        best = remaining[scores[remaining].argmax()]
        kept.append(best)
        remaining = remaining[remaining != best]
        # Two boxes without area have IoU 0/0: they do not overlap.
        iou = box_iou(corners[best, None], corners[remaining])[0].nan_to_num(0)
        if method == 2:
            scores[remaining] *= torch.exp(-iou.square() / sigma)
        else:
            scores[remaining] *= torch.where(iou >= iou_threshold, (1 - iou) * method, 1)
        remaining = remaining[scores[remaining] >= min_score]
    indices = torch.stack(kept) if kept else remaining
    dets[: len(indices)] = torch.cat([boxes[indices], scores[indices, None].to(boxes.dtype)], 1)
    return indices


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Greedy NMS (suppressed where IoU ≥ threshold) that returns, per kept box, itself and those it suppressed.

    Args:
        dets: (N, 5), x1 y1 x2 y2 score.
        iou_threshold: see above.

    Returns:
        Groups of indices, best first, within and among the groups.
    """
    iou = box_iou(dets[:, :4], dets[:, :4])
    remaining = dets[:, 4].argsort(descending=True)
    groups = []
    while len(remaining):
        best, others = remaining[0], remaining[1:]
        suppressed = iou[best, others] >= iou_threshold
        groups.append([best.item(), *others[suppressed].tolist()])
        remaining = others[~suppressed]
    return groups


def _average_roi_align(
    aligned_height: int, aligned_width: int, spatial_scale: float, sampling_ratio: int, pool_mode: int, aligned: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    if pool_mode != 1:
        raise missing("roi_align with pool_mode='max'")

    def align(input: Tensor, rois: Tensor) -> Tensor:
        # torchvision reads out of bounds for a roi that is not finite, as a diverged training has them.
        finite = rois.isfinite().all(1)
        output = torchvision.ops.roi_align(
            input,
            rois.where(finite[:, None], 0),
            output_size=(aligned_height, aligned_width),
            spatial_scale=spatial_scale,
            sampling_ratio=sampling_ratio,
            aligned=aligned,
        )
        return output.masked_fill(~finite[:, None, None, None], torch.nan)

    return align


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign: every bin is the mean of bilinear samples on a regular grid in it; NaN for a roi that is not finite.

    Args:
        input: (B, C, H, W).
        rois: (K, 5), image index x1 y1 x2 y2.
        output: (K, C, aligned_height, aligned_width), written.
        argmax_y: left alone.
        argmax_x: left alone.
        aligned_height: bins a column.
        aligned_width: bins a row.
        spatial_scale: from the rois' coordinates to the input's.
        sampling_ratio: samples along each side of a bin; 0: its size in pixels, rounded up.
        pool_mode: 1, the mean; 0, the maximum, is not to be had.
        aligned: shift the rois by half a pixel, so that pixel i covers [i − 0.5, i + 0.5].

    Raises:
        UserError: for the maximum.
    """
    roi_align = _average_roi_align(aligned_height, aligned_width, spatial_scale, sampling_ratio, pool_mode, aligned)
    output.copy_(roi_align(*_widen(input, rois)))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of :func:`roi_align_forward` with respect to its input into ``grad_input``."""
    roi_align = _average_roi_align(aligned_height, aligned_width, spatial_scale, sampling_ratio, pool_mode, aligned)
    # RoIAlign is linear in its input, so the gradient needs no more of it than the shape.
    (gradient,) = _gradients(lambda x: roi_align(x, rois.to(x.dtype)), (grad_input,), grad_output)
    grad_input.copy_(gradient)


def _bins(start: Tensor, end: Tensor, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the cells of ``count`` bins between ``start`` and ``end`` (count, longest), and which of them count."""
    edges = torch.arange(count + 1, device=start.device) * ((end - start) / count) + start
    first = edges[:-1].floor().long().clamp(0, size)
    last = edges[1:].ceil().long().clamp(0, size)
    cells = first[:, None] + torch.arange(max(1, int((last - first).max())), device=start.device)
    return cells.clamp(max=size - 1), (cells < last[:, None]) & (start < end)


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """RoIPool: every bin is the maximum of the cells it touches.

    A roi spans [x1 · scale, (x2 + 1) · scale); a bin covers the cells from the floor of its start to the ceiling of
    its end. torchvision rounds the roi to whole cells first, which is another definition.

    Args:
        input: (B, C, H, W).
        rois: (K, 5), image index x1 y1 x2 y2, inclusive.
        output: (K, C, pooled_height, pooled_width), written; 0 for an empty bin.
        argmax: same shape, int32, written: row · W + column of the maximum; −1 for an empty bin.
        pooled_height: bins a column.
        pooled_width: bins a row.
        spatial_scale: from the rois' coordinates to the input's.
    """
    height, width = input.shape[2:]
    for k, (image, x1, y1, x2, y2) in enumerate(*_widen(rois)):
        rows, row_counts = _bins(y1 * spatial_scale, (y2 + 1) * spatial_scale, pooled_height, height)
        columns, column_counts = _bins(x1 * spatial_scale, (x2 + 1) * spatial_scale, pooled_width, width)
        # All below: (bin row, bin column, row in the bin, column in the bin), the last two then flattened.
        cells = (rows[:, None, :, None] * width + columns[None, :, None, :]).flatten(2)
        counts = (row_counts[:, None, :, None] & column_counts[None, :, None, :]).flatten(2)
        values = input[int(image)].flatten(1)[:, cells].masked_fill(~counts, -torch.inf)
        maximum, position = values.max(-1)
        empty = ~counts.any(-1)
        output[k] = maximum.masked_fill(empty, 0)
        argmax[k] = cells.expand_as(values).gather(-1, position[..., None])[..., 0].masked_fill(empty, -1)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Add every element of ``grad_output`` to ``grad_input`` where :func:`roi_pool_forward` found its maximum."""
    channels, height, width = grad_input.shape[1:]
    planes = rois[:, :1].long() * channels + torch.arange(channels, device=rois.device)
    cells = planes[..., None, None] * (height * width) + argmax
    filled = argmax >= 0
    grad_input.view(-1).index_put_((cells[filled],), grad_output[filled], accumulate=True)


def _left_out(offset: Tensor, size: tuple[int, ...], kernel: tuple[int, ...], geometry: tuple[int, ...]) -> Tensor:
    """Return which points a deformable convolution leaves out, (B, G, kH, kW, H', W'): those not inside (−1, size)."""
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

    DyHead gives such, and its published weights were trained with that.
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
        # mmcv leaves a point at −1 out, gradient included; torchvision has a gradient there, and reads out of bounds
        # for NaN. Far away both agree.
        kernel, undefined = weight.shape[2:], offset.isnan().any(1, keepdim=True)
        left_out = _left_out(offset, input.shape[2:], kernel, geometry)
        offset = offset.unflatten(1, (-1, *kernel, 2)).masked_fill(left_out[:, :, :, :, None], _FAR).flatten(1, 4)
        # Not torchvision's Python wrapper: it guesses the groups from the shapes, so a wrong one would pass unseen.
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

    A point at −1 or at the size of the input, or beyond, is outside: it has no gradient either. Where an offset is NaN
    the output is, so that a diverged training is noticed; mmcv takes 0 there.

    Args:
        input: (B, C, H, W).
        weight: (O, C / group, kH, kW).
        offset: (B, deformable_group · kH · kW · 2, H', W'), y before x, in pixels of the input.
        output: (B, O, H', W'), written.
        columns: left alone.
        ones: left alone.
        kW: kernel width.
        kH: kernel height.
        dW: horizontal stride.
        dH: vertical stride.
        padW: zeros added left and right.
        padH: zeros added above and below.
        dilationW: columns between kernel points.
        dilationH: rows between kernel points.
        group: groups of channels with weights of their own.
        deformable_group: groups of channels with offsets of their own.
        im2col_step: left alone.
    """
    convolve = _deform_conv((dH, dW, padH, padW, dilationH, dilationW), group, deformable_group)
    output.copy_(convolve(*_widen(input, offset, weight)))


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
    grad_input, grad_offset, _ = _gradients(convolve, (input, offset, weight), gradOutput)
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

    The weight is not among the arguments, and not needed: the convolution is linear in it.
    """
    convolve = _deform_conv((dH, dW, padH, padW, dilationH, dilationW), group, deformable_group)
    *_, grad_weight = _gradients(convolve, (input, offset, torch.zeros_like(gradWeight)), gradOutput)
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
    """As :func:`deform_conv_forward`, every sample times mask(p, k), plus a bias.

    Maps of offsets and masks that are larger than the output count as mmcv reads them, see :func:`_as_read`.

    Args:
        input: (B, C, H, W).
        weight: (O, C / group, kernel_h, kernel_w).
        bias: (O,); left alone without ``with_bias``.
        ones: left alone.
        offset: (B, deformable_group · kernel_h · kernel_w · 2, H', W'), y before x, in pixels of the input.
        mask: (B, deformable_group · kernel_h · kernel_w, H', W').
        output: (B, O, H', W'), written.
        columns: left alone.
        kernel_h: kernel height.
        kernel_w: kernel width.
        stride_h: vertical stride.
        stride_w: horizontal stride.
        pad_h: zeros added above and below.
        pad_w: zeros added left and right.
        dilation_h: rows between kernel points.
        dilation_w: columns between kernel points.
        group: groups of channels with weights of their own.
        deformable_group: groups of channels with offsets and masks of their own.
        with_bias: whether to add the bias.
    """
    convolve = _deform_conv((stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w), group, deformable_group)
    tensors = (input, offset, weight, mask, bias) if with_bias else (input, offset, weight, mask)
    output.copy_(convolve(*_widen(*tensors)))


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
    for target, gradient in zip(targets, _gradients(convolve, tensors, grad_output), strict=False):
        target.copy_(gradient)


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Write into ``col`` (C · kernel_h · kernel_w, N) what a convolution reads for N of its outputs; 0 outside.

    Args:
        im: (1, C, H, W).
        mask_h_idx: (N,), the outputs' rows.
        mask_w_idx: (N,), the outputs' columns.
        col: see above.
        kernel_h: kernel height.
        kernel_w: kernel width.
        pad_h: zeros added above and below.
        pad_w: zeros added left and right.
    """
    padded = F.pad(im[0], (pad_w, kernel_w, pad_h, kernel_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, rows, columns].flatten(0, 2))


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Write N outputs ``col`` (C, N) to their places in ``im`` (1, C, height, width)."""
    im[0, :, mask_h_idx, mask_w_idx] = col


def _deformable_attention(spatial_shapes: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch  # which imports this module

    shapes = spatial_shapes.tolist()  # once, since each look at a GPU's tensor waits for it
    return lambda value, locations, weights: multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention by mmcv's own code for the CPU, which mmcv does not use on a GPU.

    Args:
        value: (B, keys, heads, D), the levels' cells one level after another.
        value_spatial_shapes: (L, 2), height and width of each level.
        value_level_start_index: left alone.
        sampling_locations: (B, Q, heads, L, P, 2), x and y from 0 to 1.
        attention_weights: (B, Q, heads, L, P).
        im2col_step: left alone.

    Returns:
        (B, Q, heads · D), the weighted sum of the bilinear samples; 0 outside.
    """
    attend = _deformable_attention(value_spatial_shapes)
    return attend(*_widen(value, sampling_locations, attention_weights)).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Write the gradients of :func:`ms_deform_attn_forward`."""
    attend = _deformable_attention(value_spatial_shapes)
    gradients = _gradients(attend, (value, sampling_locations, attention_weights), grad_output)
    for target, gradient in zip((grad_value, grad_sampling_loc, grad_attn_weight), gradients, strict=True):
        target.copy_(gradient)


def _sigmoid_focal_terms(input: Tensor, target: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return, per logit, +1 for the target class and −1 elsewhere; sign · logit; and the weight of its loss."""
    truth = (target[:, None] == torch.arange(input.shape[1], device=input.device)).to(input.dtype)
    sign = 2 * truth - 1
    scale = alpha * truth + (1 - alpha) * (1 - truth)
    if len(weight):
        # The background (target = C) has no entry; it keeps weight 1.
        scale = scale * F.pad(weight.to(input.dtype), (0, 1), value=1)[target, None]
    return sign, sign * input, scale


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss of every logit on its own: −a · (1 − q)^gamma · log q.

    q is the probability given to the truth: sigmoid(x), a = alpha for the target class; sigmoid(−x), a = 1 − alpha
    for every other.

    Args:
        input: (N, C) logits.
        target: (N,), 0 … C − 1; C, the background, is no class's target.
        weight: (C,), of the target's class, or empty.
        output: (N, C), written.
        gamma: exponent.
        alpha: see above.
    """
    (logits,) = _widen(input)
    _, margin, scale = _sigmoid_focal_terms(logits, target, weight, alpha)
    output.copy_(-scale * torch.sigmoid(-margin) ** gamma * F.logsigmoid(margin))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of :func:`sigmoid_focal_loss_forward` by its logits.

    With q as there: ±a · (1 − q)^gamma · (gamma · q · log q − (1 − q)), + for the target class.
    """
    (logits,) = _widen(input)
    sign, margin, scale = _sigmoid_focal_terms(logits, target, weight, alpha)
    wrong = torch.sigmoid(-margin)
    slope = gamma * torch.sigmoid(margin) * F.logsigmoid(margin) - wrong
    grad_input.copy_(sign * scale * wrong**gamma * slope)


def _softmax_focal_terms(
    softmax: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return, per row, the target's probability, its logarithm, and the weight of the loss (0: ignored)."""
    known = target >= 0
    label = target.clamp(min=0)
    probability = softmax.gather(1, label[:, None])[:, 0]
    scale = alpha * known.to(softmax.dtype)
    if len(weight):
        scale = scale * weight.to(softmax.dtype)[label]
    return probability, probability.clamp(min=torch.finfo(softmax.dtype).tiny).log(), scale


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss of every row: −alpha · (1 − p)^gamma · log p, p the target's probability.

    Args:
        input: (N, C) probabilities.
        target: (N,), 0 … C − 1; below 0: no loss.
        weight: (C,), of the target's class, or empty.
        output: (N,), written.
        gamma: exponent.
        alpha: factor.
    """
    probability, logarithm, scale = _softmax_focal_terms(*_widen(input), target, weight, alpha)
    output.copy_(-scale * (1 - probability) ** gamma * logarithm)


def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of :func:`softmax_focal_loss_forward` by the logits of which ``input`` is the softmax.

    alpha · (gamma · (1 − p)^(gamma − 1) · p · log p − (1 − p)^gamma) · (1[c = target] − softmax_c); ``buff`` (N,)
    is left alone.
    """
    (softmax,) = _widen(input)
    probability, logarithm, scale = _softmax_focal_terms(softmax, target, weight, alpha)
    # Kept off 0, where gamma < 1 would give 0 · infinity.
    wrong = (1 - probability).clamp(min=torch.finfo(softmax.dtype).tiny)
    slope = scale * (gamma * wrong ** (gamma - 1) * probability * logarithm - wrong**gamma)
    hit = target[:, None] == torch.arange(softmax.shape[1], device=softmax.device)
    grad_input.copy_(slope[:, None] * (hit.to(softmax.dtype) - softmax))
