"""Multi-scale deformable attention."""

from collections.abc import Callable

from torch import Tensor

from .precision import gradients, widen


def _deformable_attention(spatial_shapes: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch  # which imports this module

    shapes = spatial_shapes.tolist()  # once, since reading a GPU's tensor waits for it
    return lambda value, locations, weights: multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention by mmcv's own code for CPUs, on any device.

    Args:
        value: Values (B, keys, heads, D), the cells of one level after another.
        value_spatial_shapes: Height and width of each level, (L, 2).
        value_level_start_index: Unused.
        sampling_locations: Locations (B, Q, heads, L, P, 2), x and y from 0 to 1.
        attention_weights: Weights (B, Q, heads, L, P).
        im2col_step: Unused.

    Returns:
        (B, Q, heads · D), the weighted sum of the bilinear samples; 0 outside.
    """
    attend = _deformable_attention(value_spatial_shapes)
    return attend(*widen(value, sampling_locations, attention_weights)).to(value.dtype)


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
    targets = (grad_value, grad_sampling_loc, grad_attn_weight)
    found = gradients(attend, (value, sampling_locations, attention_weights), grad_output)
    for target, gradient in zip(targets, found, strict=True):
        target.copy_(gradient)
