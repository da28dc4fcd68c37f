"""Hints: direct regression of features."""

from functools import partial

from torch import Tensor

from .checks import check_choice, check_positions
from .gram import distillation_loss, half_squares, match_size

REDUCTIONS = ('mean', 'sum')


@partial(distillation_loss, takes_half=True)
def fitnet_loss(student: Tensor, teacher: Tensor, reduction: str = 'mean') -> Tensor:
    """Half the squared difference of two features.

    ``1/2 (s - t)^2``, averaged over all elements (``'mean'``), or summed over the elements of a sample and averaged
    over the batch (``'sum'``: ``1/2 ||s - t||_2^2``, the paper's equation 3). ``'sum'`` is C H W times ``'mean'``. The
    paper's regressor is no part of the loss: it is the term's adapter.

    Args:
        student: Features s: maps (B, C, H, W), tokens (B, N, C) or vectors (B, C).
        teacher: Features t of the same rank, B, C and N; they get no gradient. Where the maps differ in size, both are
            average-pooled to the smaller height and width.
        reduction: ``'mean'`` or ``'sum'``.

    Returns:
        Scalar, in squared units of the features.

    Raises:
        ValueError: Wrong rank, a different batch, channel or token count, or an unknown reduction.

    References:
        1. Romero et al.: FitNets: Hints for Thin Deep Nets, ICLR 2015, arXiv 1412.6550.
    """
    check_choice('reduction', reduction, REDUCTIONS)
    check_positions('fitnet_loss', student, teacher)
    if student.ndim == 4:
        student, teacher = match_size(student, teacher)
    return half_squares(student, teacher) / (student.numel() if reduction == 'mean' else len(student))
