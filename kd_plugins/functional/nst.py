"""Neuron selectivity transfer."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from .checks import check_choice, check_maps, check_number
from .gram import distillation_loss, gram, match_size, refuse_second_derivative, squared_norms, unit

KERNELS = ('poly', 'linear', 'gaussian')
BANDWIDTHS = ('cross', 'all')

# Numbers in the largest temporary: as many as a CPU's cache holds; on other devices fewer calls matter more.
_BLOCK_ELEMENTS, _LARGE_BLOCK = 2**18, 2**26


def _inverse_norm(squared: Tensor, eps: float = 1e-24) -> Tensor:
    """Return 1 / norm from squared norms, and 0 without gradient where a map is zero."""
    return squared.masked_fill(squared <= eps, torch.inf).rsqrt()


def _cosines(student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
    """Return x'x, y'y and x'y of the normalised maps; the smaller are scaled, the maps or their Gram matrices."""
    if student.shape[2] < student.shape[1]:
        student, teacher = unit(student), unit(teacher)
        return gram(student), teacher @ teacher.mT, student @ teacher.mT
    own, other, cross = gram(student), teacher @ teacher.mT, student @ teacher.mT
    s, t = (_inverse_norm(squared_norms(*x)) for x in ((student, own), (teacher, other)))
    pairs = (own, s, s), (other, t, t), (cross, s, t)
    return tuple(products * left[:, :, None] * right[:, None, :] for products, left, right in pairs)


def _mmd(kernel: Callable[[Tensor], Tensor], student: Tensor, teacher: Tensor) -> Tensor:
    own, other, cross = (kernel(x).mean() for x in _cosines(student, teacher))
    return own + other - 2 * cross


def _linear(student: Tensor, teacher: Tensor) -> Tensor:
    scales = (_inverse_norm(torch.linalg.vector_norm(x, dim=2).square()) / x.shape[1] for x in (student, teacher))
    own, other = (scale[:, None, :] @ x for scale, x in zip(scales, (student, teacher), strict=True))
    return mse_loss(own, other, reduction='sum') / len(student)


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


class _GaussianSum(torch.autograd.Function):
    """Sum over the batch of MMD^2 under a Gaussian kernel, from maps (B, C_S, N) and (B, C_T, N).

    The samples are independent, so a few are taken at a time, and the gradient is computed along with the value. With
    respect to the normalised x_i it is ``g_i = 2 / (C_S^2 v) sum_j k(x_i, x_j) x_j - 2 / (C_S C_T v) sum_j k(x_i, y_j)
    y_j``, where ``k(x, y) = exp((x'y - (|x|^2 + |y|^2) / 2) / v)`` and the norms are constants; with respect to the map
    itself, of norm n, ``(g_i - x_i x_i'g_i) / n``. Nothing of size B C^2 is kept.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, bandwidth: str | float) -> Tensor:
        c_s, c_t = student.shape[1], teacher.shape[1]
        gradient = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        total = student.new_zeros((), dtype=torch.float64)
        elements = _BLOCK_ELEMENTS if student.device.type == 'cpu' else _LARGE_BLOCK
        block = max(elements // (max(c_s, c_t) * max(c_s, c_t, student.shape[2])), 1)
        for part in (slice(start, start + block) for start in range(0, len(student), block)):
            # 0 for a zero map, which makes it the zero vector and leaves it without gradient.
            scales = [
                1 / norm.masked_fill(norm <= 1e-12, torch.inf)
                for norm in (torch.linalg.vector_norm(z[part], dim=2, keepdim=True) for z in (student, teacher))
            ]
            x, y = student[part] * scales[0], teacher[part] * scales[1]
            s, t = ((scale > 0).to(x.dtype) / 2 for scale in scales)  # half the squared norms
            pairs = (x, x, s, s), (y, y, t, t), (x, y, s, t)
            own, other, cross = ((a @ b.mT).sub_(left).sub_(right.mT) for a, b, left, right in pairs)
            variance = _variance(own, other, cross, bandwidth)
            own, other, cross = (z.div_(variance).exp_() for z in (own, other, cross))
            # The three means nearly cancel where the sets are alike.
            means = [z.mean((1, 2), dtype=torch.float64).sum() for z in (own, other, cross)]
            total += means[0] + means[1] - 2 * means[2]
            if gradient is not None:
                g = (own @ x / c_s - cross @ y / c_t) * (2 / (c_s * variance))
                gradient[part] = g.sub_(x * (x * g).sum(2, keepdim=True)).mul_(scales[0])
        ctx.save_for_backward(gradient)
        return total.to(student.dtype, copy=True)  # traced, what was written to would have no gradient

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        refuse_second_derivative("NST's Gaussian kernel has")
        return grad * ctx.saved_tensors[0], None, None


def _variance(own: Tensor, other: Tensor, cross: Tensor, bandwidth: str | float) -> Tensor | float:
    """Return sigma^2 from minus half the squared distances; where it is measured, one for each sample, (B, 1, 1)."""
    # Between equal maps there is no distance to measure; rounding must not count as one.
    least = torch.finfo(cross.dtype).eps ** 0.5
    if not isinstance(bandwidth, str):
        return max(bandwidth, least)
    blocks = (cross,) if bandwidth == 'cross' else (own, other, cross, cross)
    total = reduce(torch.add, (x.sum((1, 2), keepdim=True) for x in blocks))
    return (total / sum(x[0].numel() for x in blocks) * -2).clamp_min(least)


def _gaussian(student: Tensor, teacher: Tensor, bandwidth: str | float) -> Tensor:
    return _GaussianSum.apply(student, teacher, bandwidth) / len(student)


def check_kernel(kernel: str, degree: int, c: float, bandwidth: str | float) -> None:
    """Check the options of :func:`nst_loss`."""
    check_choice('kernel', kernel, KERNELS)
    check_number('degree', degree, 1, whole=True)
    check_number('c', c, 0)
    if isinstance(bandwidth, str):
        check_choice('bandwidth', bandwidth, BANDWIDTHS)
    else:
        check_number('bandwidth', bandwidth, 0, strict=True)


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
    on the same side of the ReLU: signed and non-negative maps are different sets (the authors tap before it). With the
    Gaussian kernel it has no second derivative.

    Args:
        student: Maps (B, C_S, H_S, W_S).
        teacher: Maps (B, C_T, H_T, W_T); they get no gradient. Where the sizes differ, both are average-pooled to the
            smaller height and width.
        kernel: ``'poly'``, ``'linear'`` or ``'gaussian'``.
        degree: Degree of ``'poly'``, a whole number from 1.
        c: Constant of ``'poly'``, from 0.
        bandwidth: sigma^2 of ``'gaussian'``: the mean squared distance, per sample and without gradient, of the
            student-teacher pairs (``'cross'``) or of all ordered pairs of the two sets together (``'all'``), or a
            fixed number above 0; at least 3.5e-4 (1.5e-8 in float64), below which rounding counts as distance. The
            paper only says "of the pairs".

    Returns:
        Scalar without unit.

    Raises:
        ValueError: Not two maps, a different batch, an unknown kernel or bandwidth, or a number out of range.

    References:
        1. Huang, Wang: Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017, arXiv 1707.01219.
        2. github.com/TuSimple/neuron-selectivity-transfer (weight 50 without the 1/2, teacher term left out).
    """
    check_kernel(kernel, degree, c, bandwidth)
    check_maps('nst_loss', student, teacher)
    student, teacher = (x.flatten(2) for x in match_size(student, teacher))
    if kernel == 'poly':
        return _poly(student, teacher, degree, c)
    return _linear(student, teacher) if kernel == 'linear' else _gaussian(student, teacher, bandwidth)
