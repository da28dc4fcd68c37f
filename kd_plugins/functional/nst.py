"""Neuron selectivity transfer."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from .common import check_choice, check_maps, distillation_loss, gram, match_size, unit

KERNELS = ('poly', 'linear', 'gaussian')
BANDWIDTHS = ('cross', 'all')


def _inverse_norm(squared: Tensor, eps: float = 1e-24) -> Tensor:
    """Return 1 / norm from squared norms, and 0 without gradient where a map is zero."""
    return squared.masked_fill(squared <= eps, torch.inf).rsqrt()


def _cosines(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return x'x, y'y and x'y of the normalised maps; scaled are the smaller, the maps or their Gram matrices."""
    if student.shape[2] < student.shape[1]:
        student, teacher = unit(student), unit(teacher)
        return gram(student), teacher @ teacher.mT, student @ teacher.mT
    own, other, cross = gram(student), teacher @ teacher.mT, student @ teacher.mT
    s, t = (_inverse_norm(x.diagonal(dim1=1, dim2=2)) for x in (own, other))
    pairs = (own, s, s), (other, t, t), (cross, s, t)
    return tuple(products * left[:, :, None] * right[:, None, :] for products, left, right in pairs)


def _mmd(kernel: Callable[[Tensor], Tensor], student: Tensor, teacher: Tensor) -> Tensor:
    own, other, cross = (kernel(x).mean() for x in _cosines(student, teacher))
    return own + other - 2 * cross


def _linear(student: Tensor, teacher: Tensor) -> Tensor:
    scales = (_inverse_norm(torch.linalg.vector_norm(x, dim=2).square()) / x.shape[1] for x in (student, teacher))
    means = (scale[:, None, :] @ x for scale, x in zip(scales, (student, teacher), strict=True))
    return mse_loss(*means, reduction='sum') / len(student)


def _square(student: Tensor, teacher: Tensor) -> Tensor:
    (size, c_s, positions), c_t = student.shape, teacher.shape[1]
    # The same number from the Gram matrices over positions or over channels: take the cheaper one.
    if positions * (c_s + c_t) > c_s**2 + c_s * c_t + c_t**2:
        return _mmd(torch.square, student, teacher)
    student, teacher = unit(student), unit(teacher)
    return mse_loss(gram(student.mT) / c_s, teacher.mT @ teacher / c_t, reduction='sum') / size


def _poly(student: Tensor, teacher: Tensor, degree: int, c: float) -> Tensor:
    if degree != 2:
        return _mmd(lambda x: (x + c) ** degree, student, teacher)
    # (x'y + c)^2 = (x'y)^2 + 2 c x'y + c^2, and the constant cancels.
    loss = _square(student, teacher)
    return loss + 2 * c * _linear(student, teacher) if c else loss


def _gaussian(student: Tensor, teacher: Tensor, bandwidth: str | float) -> Tensor:
    # Half the squared norms: 1/2, but 0 for a zero map.
    s, t = ((torch.linalg.vector_norm(x.detach(), dim=2) > 1e-12) / 2 for x in (student, teacher))
    pairs = zip(_cosines(student, teacher), (s, t, s), (s, t, t), strict=True)
    own, other, cross = (cosine - (left[:, :, None] + right[:, None, :]) for cosine, left, right in pairs)
    if isinstance(bandwidth, str):
        blocks = (cross,) if bandwidth == 'cross' else (own, other, cross, cross)
        variance = sum(x.detach().sum((1, 2), keepdim=True) for x in blocks) / sum(x[0].numel() for x in blocks) * -2
        # Equal maps have no distance to measure by; rounding must not take its place.
        variance = variance.clamp_min(torch.finfo(student.dtype).eps ** 0.5)
    else:
        variance = bandwidth
    own, other, cross = ((x / variance).exp().mean() for x in (own, other, cross))  # x is minus half a squared distance
    return own + other - 2 * cross


@distillation_loss
def nst_loss(
    student: Tensor,
    teacher: Tensor,
    kernel: str = 'poly',
    degree: int = 2,
    c: float = 0.0,
    bandwidth: str | float = 'cross',
) -> Tensor:
    """Squared maximum mean discrepancy of two sets of channels, each channel a sample of where it is active.

    Every channel's map is flattened and scaled to L2 norm 1 per sample: x_i of the student, y_j of the teacher.
    ``MMD^2 = mean_ij k(x_i, x_j) + mean_ij k(y_i, y_j) - 2 mean_ij k(x_i, y_j)``, the biased estimate with the
    diagonals, averaged over the batch (the paper's weight is lambda / 2). The kernel k(x, y) is

    * ``'poly'``: ``(x'y + c)^degree``. Of degree 2 and c 0 it is ``||X'X / C_S - Y'Y / C_T||_F^2`` over the positions;
    * ``'linear'``: ``x'y``, which makes it ``||mean x_i - mean y_j||^2``;
    * ``'gaussian'``: ``exp(-||x - y||^2 / (2 sigma^2))``.

    The value can fall below 0 by rounding. A map of zeros is the zero vector and gets no gradient. Tap both networks
    on the same side of the ReLU: signed and non-negative maps are different sets (the authors tap before it).

    Args:
        student: Maps (B, C_S, H_S, W_S).
        teacher: Maps (B, C_T, H_T, W_T); no gradient goes back to them. Where the sizes differ, both are
            average-pooled to the smaller height and width.
        kernel: ``'poly'``, ``'linear'`` or ``'gaussian'``.
        degree: Degree of ``'poly'``, a whole number from 1.
        c: Constant of ``'poly'``, from 0.
        bandwidth: sigma^2 of ``'gaussian'``: the mean squared distance, per sample and without gradient, of the
            student-teacher pairs (``'cross'``) or of all ordered pairs of the two sets together (``'all'``), or a
            fixed number above 0. The paper only says "of the pairs".

    Returns:
        Scalar without unit.

    Raises:
        ValueError: Not two maps, a different batch, an unknown kernel or bandwidth.

    References:
        1. Huang, Wang: Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017, arXiv 1707.01219.
        2. github.com/TuSimple/neuron-selectivity-transfer (weight 50 without the 1/2, teacher term left out).
    """
    check_choice('kernel', kernel, KERNELS)
    if isinstance(bandwidth, str):
        check_choice('bandwidth', bandwidth, BANDWIDTHS)
    check_maps('nst_loss', student, teacher)
    student, teacher = (x.flatten(2) for x in match_size(student, teacher))
    if kernel == 'poly':
        return _poly(student, teacher, degree, c)
    return _linear(student, teacher) if kernel == 'linear' else _gaussian(student, teacher, bandwidth)
