"""Neuron selectivity transfer."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from .common import check_choice, check_maps, distillation_loss, match_size, unit

KERNELS = ('poly', 'linear', 'gaussian')
BANDWIDTHS = ('cross', 'all')


def _mmd(kernel: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor) -> Tensor:
    return kernel(student, student).mean() + kernel(teacher, teacher).mean() - 2 * kernel(student, teacher).mean()


def _linear(student: Tensor, teacher: Tensor) -> Tensor:
    return mse_loss(student.mean(1), teacher.mean(1), reduction='sum') / len(student)


def _square(student: Tensor, teacher: Tensor) -> Tensor:
    (size, c_s, positions), c_t = student.shape, teacher.shape[1]
    # The same number from the Gram matrices over positions or over channels: take the cheaper one.
    if positions * (c_s + c_t) > c_s**2 + c_s * c_t + c_t**2:
        return _mmd(lambda x, y: (x @ y.mT).square(), student, teacher)
    return mse_loss(student.mT @ student / c_s, teacher.mT @ teacher / c_t, reduction='sum') / size


def _poly(student: Tensor, teacher: Tensor, degree: int, c: float) -> Tensor:
    if degree != 2:
        return _mmd(lambda x, y: (x @ y.mT + c) ** degree, student, teacher)
    # (x'y + c)^2 = (x'y)^2 + 2 c x'y + c^2, and the constant cancels.
    loss = _square(student, teacher)
    return loss + 2 * c * _linear(student, teacher) if c else loss


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    # The squared norms are 1, but 0 for a zero map.
    return x.square().sum(2)[:, :, None] + y.square().sum(2)[:, None, :] - 2 * (x @ y.mT)


def _gaussian(student: Tensor, teacher: Tensor, bandwidth: str | float) -> Tensor:
    own, other, cross = (
        _squared_distances(*pair) for pair in ((student, student), (teacher, teacher), (student, teacher))
    )
    if isinstance(bandwidth, str):
        blocks = (cross,) if bandwidth == 'cross' else (own, other, cross, cross)
        variance = sum(x.detach().sum((1, 2), keepdim=True) for x in blocks) / sum(x[0].numel() for x in blocks)
        # Equal maps have no distance to measure by; rounding must not take its place.
        variance = variance.clamp_min(torch.finfo(student.dtype).eps ** 0.5)
    else:
        variance = bandwidth
    own, other, cross = ((x / (-2 * variance)).exp().mean() for x in (own, other, cross))
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
    student, teacher = (unit(x.flatten(2)) for x in match_size(student, teacher))
    if kernel == 'poly':
        return _poly(student, teacher, degree, c)
    return _linear(student, teacher) if kernel == 'linear' else _gaussian(student, teacher, bandwidth)
