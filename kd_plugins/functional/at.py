"""Attention transfer."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .checks import check_choice, check_maps, check_number
from .gram import applied, as_float, distillation_loss, kept_type, match_size, unit

CONVENTIONS = ('paper', 'code')

_PART = 2**18


class _Energy(torch.autograd.Function):
    """Sum of the squares over the channels: the gradient is one product, where autograd's own makes two whole maps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        # On a CPU some images at a time: small temporaries stay in its cache, large ones have to be allocated anew.
        parts = x.split(max(_PART // x[0].numel(), 1)) if x.device.type == 'cpu' else (x,)
        return torch.cat([as_float(part).square().sum(1) for part in parts])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return ((2 * grad).to(kept_type(x.dtype))[:, None] * x).to(x.dtype)


def attention_map(features: Tensor, p: float = 2) -> Tensor:
    """Return the attention map ``sum_c |A_c|^p``, i.e. where in the image the activations are strong.

    Args:
        features: Maps A, (B, C, H, W).
        p: Power of the absolute activation, at least 1.

    Returns:
        (B, H, W), in float32 or, for features of float64, in float64.

    Raises:
        ValueError: The power is below 1.

    Example:
        >>> import torch
        >>> from kd_plugins.functional import attention_map
        >>> attention_map(torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]]))
        tensor([[[10.,  4.]]])
    """
    check_number('p', p, 1)
    if p != 2:
        return as_float(features).abs().pow(p).sum(1)
    return applied(_Energy, lambda x: as_float(x).square().sum(1), features)


def matched_attention(student: Tensor, teacher: Tensor, p: float = 2) -> tuple[Tensor, Tensor]:
    """Return the two attention maps as :func:`at_loss` compares them, (B, H W).

    They are average-pooled to the smaller height and width, flattened, and scaled to L2 norm 1 per sample. The
    arguments are those of :func:`at_loss`.
    """
    first, second = match_size(attention_map(student, p), attention_map(teacher, p))
    return unit(first.flatten(1)), unit(second.flatten(1))


@partial(distillation_loss, takes_half=True)
def at_loss(student: Tensor, teacher: Tensor, convention: str = 'paper', p: float = 2) -> Tensor:
    """Difference of two attention maps, i.e. of where in the image the activations are strong.

    ``Q = sum_c |A_c|^p`` over the channels, flattened and scaled to L2 norm 1 per sample. With d = Q_S - Q_T:

    * ``'paper'``: ``||d||_2``, **not** squared, averaged over the batch (equation 2; its weight is beta / 2);
    * ``'code'``: the authors' program, mean of d^2 over batch and positions, i.e. ``||d||_2^2 / (H W)`` averaged over
      the batch (its weight is beta; 1000 on CIFAR).

    Args:
        student: Maps (B, C_S, H_S, W_S).
        teacher: Maps (B, C_T, H_T, W_T); they get no gradient. Where the sizes differ, the attention maps Q are
            average-pooled to the smaller height and width (the paper interpolates attention maps, not features).
        convention: ``'paper'`` or ``'code'``.
        p: Power of the absolute activation, at least 1.

    Returns:
        Scalar without unit. Where d or a whole map is 0, the gradient is 0.

    Raises:
        ValueError: Not two maps, a different batch, an unknown convention, or a power below 1.

    References:
        1. Zagoruyko, Komodakis: Paying More Attention to Attention, ICLR 2017, arXiv 1612.03928.
        2. github.com/szagoruyko/attention-transfer
    """
    check_choice('convention', convention, CONVENTIONS)
    check_maps('at_loss', student, teacher)
    student, teacher = matched_attention(student, teacher, p)
    if convention == 'paper':
        return torch.linalg.vector_norm(student - teacher, dim=1).mean()
    return (student - teacher).square().mean()
