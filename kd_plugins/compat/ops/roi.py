"""Features of regions of interest."""

from collections.abc import Callable

import torch
import torchvision
from torch import Tensor

from .missing import missing
from .precision import gradients, widen


def _average_roi_align(
    aligned_height: int, aligned_width: int, spatial_scale: float, sampling_ratio: int, pool_mode: int, aligned: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    if pool_mode != 1:
        raise missing("roi_align with pool_mode='max'")

    def align(input: Tensor, rois: Tensor) -> Tensor:
        # torchvision reads out of bounds for a roi that is not finite, which a diverged training has.
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
        input: Maps (B, C, H, W).
        rois: Regions (K, 5), image index x1 y1 x2 y2.
        output: Written, (K, C, aligned_height, aligned_width).
        argmax_y: Unused.
        argmax_x: Unused.
        aligned_height: Number of bins in a column.
        aligned_width: Number of bins in a row.
        spatial_scale: Factor from the coordinates of the rois to those of the input.
        sampling_ratio: Number of samples along each side of a bin; 0 takes its size in pixels, rounded up.
        pool_mode: 1, the mean; 0, the maximum, is not supported.
        aligned: Whether to shift the rois by half a pixel, so that pixel i covers [i − 0.5, i + 0.5].

    Raises:
        UserError: The maximum is asked for.
    """
    roi_align = _average_roi_align(aligned_height, aligned_width, spatial_scale, sampling_ratio, pool_mode, aligned)
    output.copy_(roi_align(*widen(input, rois)))


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
    (gradient,) = gradients(lambda x: roi_align(x, rois.to(x.dtype)), (grad_input,), grad_output)
    grad_input.copy_(gradient)


def _bins(start: Tensor, end: Tensor, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the cells of ``count`` bins between ``start`` and ``end``, (count, longest), and which are real."""
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
        input: Maps (B, C, H, W).
        rois: Regions (K, 5), image index x1 y1 x2 y2, inclusive.
        output: Written, (K, C, pooled_height, pooled_width); 0 for an empty bin.
        argmax: Written, int32 of the same shape: row · W + column of the maximum; −1 for an empty bin.
        pooled_height: Number of bins in a column.
        pooled_width: Number of bins in a row.
        spatial_scale: Factor from the coordinates of the rois to those of the input.
    """
    height, width = input.shape[2:]
    for k, (image, x1, y1, x2, y2) in enumerate(widen(rois)[0]):
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
