"""Correlation of channels."""

from collections.abc import Callable

import torch
from torch import Tensor

from .checks import check_channels, check_maps
from .gram import distillation_loss, match_size, with_gradient


@distillation_loss
def pkd_loss(student: Tensor, teacher: Tensor, total: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """Half the mean square of the difference of two maps, every channel standardised over batch and positions.

    ``1/2 mean (s' - t')^2`` with ``s' = (s - mean s) / std s`` for each channel, over its N = B H W values. Where no
    channel is constant, this is ``1 - r`` with Pearson's correlation r, averaged over the channels: the scale and the
    offset of a channel play no role, so that networks of other kinds can be compared. A channel whose deviation is
    within the rounding of its mean is constant: it becomes 0, and gets no gradient.

    The authors' code adds 1e-6 to the deviation, which has N - 1 degrees of freedom there and N here. The gradient of
    a constant channel is up to 1e6 times that of others there.

    Args:
        student: Maps s (B, C, H, W).
        teacher: Maps t with the same B and C; they get no gradient. Where the maps differ in size, both are
            average-pooled to the smaller height and width. The authors resize the student's to the teacher's size:
            ``resize='teacher'`` of a term.
        total: Function that returns the sum of a tensor over all processes; value and gradient are then those of the
            global batch, whose maps may differ in size between processes, times the number of processes for the
            gradient, which data-parallel divides by it. The default is that of a single process.

    Returns:
        Scalar between 0 and 2; 1/2 where the channels of one of the maps are constant.

    Raises:
        ValueError: Not maps, or another batch or channel count.

    References:
        1. Cao et al.: PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient,
           NeurIPS 2022, arXiv 2207.02039.
        2. open-mmlab/mmrazor, ``mmrazor/models/losses/pkd_loss.py``.
    """
    check_maps('pkd_loss', student, teacher)
    check_channels('pkd_loss', student, teacher)
    student, teacher = match_size(student, teacher)
    with torch.no_grad():
        ones = torch.ones_like(student[0, :, 0, 0])
        values = ones * (student.numel() / len(ones))
        sums = total(torch.stack([ones, values, student.sum((0, 2, 3)), teacher.sum((0, 2, 3))]))
        (processes, count), means = sums[:2, 0], sums[2:] / sums[1]
        s, t = (x - mean[:, None, None] for x, mean in zip((student, teacher), means, strict=True))
        deviations = (total(torch.stack([_squares(s), _squares(t)])) / count).sqrt()
        constant = deviations <= 16 * torch.finfo(s.dtype).eps * means.abs()
        scales = deviations.masked_fill(constant, torch.inf).reciprocal()
        s, t = (x.mul_(scale[:, None, None]) for x, scale in zip((s, t), scales, strict=True))
        losses = total(_squares(s - t)) / (2 * count)
        correlations = (~constant).to(s.dtype).mean(0) - losses
        # d r / d s = (t' - r s') / (N std s)
        factors = processes * scales[0] / (count * len(ones))
        gradient = s.mul_((correlations * factors)[:, None, None]).sub_(t.mul_(factors[:, None, None]))
    return with_gradient(student, losses.mean(), gradient)


def _squares(x: Tensor) -> Tensor:
    """Return the sums of squares (C,) of the channels of maps (B, C, H, W)."""
    if x.is_contiguous():
        return torch.linalg.vector_norm(x.flatten(2), dim=2).square().sum(0)
    return x.square().sum((0, 2, 3))  # faster where the channels are the last in memory
