"""Attention transfer."""

import torch
from torch import Tensor

from .common import check_choice, check_maps, distillation_loss, match_size, unit

CONVENTIONS = ('paper', 'code')


@distillation_loss
def at_loss(student: Tensor, teacher: Tensor, convention: str = 'paper', p: float = 2) -> Tensor:
    """Difference of two attention maps, i.e. of where in the image the activations are strong.

    ``Q = sum_c |A_c|^p`` over the channels, flattened and scaled to L2 norm 1 per sample. With d = Q_S - Q_T:

    * ``'paper'``: ``||d||_2``, **not** squared, averaged over the batch (equation 2; its weight is beta / 2);
    * ``'code'``: the authors' program, mean of d^2 over batch and positions, i.e. ``||d||_2^2 / (H W)`` averaged over
      the batch (its weight is beta; 1000 on CIFAR).

    Args:
        student: Maps (B, C_S, H_S, W_S).
        teacher: Maps (B, C_T, H_T, W_T); no gradient goes back to them. Where the sizes differ, the attention maps Q
            are average-pooled to the smaller height and width (the paper interpolates attention maps, not features).
        convention: ``'paper'`` or ``'code'``.
        p: Power of the absolute activation, at least 1.

    Returns:
        Scalar without unit. Where d or a whole map is 0, the gradient is 0.

    Raises:
        ValueError: Not two maps, a different batch, or an unknown convention.

    References:
        1. Zagoruyko, Komodakis: Paying More Attention to Attention, ICLR 2017, arXiv 1612.03928.
        2. github.com/szagoruyko/attention-transfer
    """
    check_choice('convention', convention, CONVENTIONS)
    check_maps('at_loss', student, teacher)
    attention = ((x.square() if p == 2 else x.abs().pow(p)).sum(1) for x in (student, teacher))
    student, teacher = (unit(x.flatten(1)) for x in match_size(*attention))
    if convention == 'paper':
        return torch.linalg.vector_norm(student - teacher, dim=1).mean()
    return (student - teacher).square().mean()
