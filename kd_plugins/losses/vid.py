"""Variational information distillation."""

from functools import partial
from math import expm1, log
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from kd_plugins.functional import vid_loss
from kd_plugins.functional.checks import check_number, check_positions
from kd_plugins.functional.gram import match_size
from kd_plugins.losses.base import DistillationLoss
from kd_plugins.registry import MODELS

EPS = 1e-5  # the authors' least variance


@MODELS.register_module()
class VIDLoss(DistillationLoss):
    """Likelihood of the teacher's features, predicted from the student's: :func:`kd_plugins.functional.vid_loss`.

    The means are predicted by three 1x1 convolutions without bias (linear layers for tokens and vectors), with ReLU in
    between and the teacher's channels in all of them, as in the authors' code. The variance of a channel is
    ``softplus(a_c) + 1e-5``. Both are parts of this module, sized by the first features: their parameters train in the
    same step, at the optimiser's base learning rate, and are saved like an adapter's. Each level has its own.

    RepDistiller puts it on the ends of the three groups of its CIFAR-100 networks, with weight 1 each.

    Args:
        variance: Variance of every channel at the start.

    Raises:
        ValueError: The variance is out of range; in a call, the channels are others than at the first.

    Example:
        >>> import torch
        >>> from kd_plugins.losses import VIDLoss
        >>> loss = VIDLoss()
        >>> round(loss(torch.zeros(2, 3, 4, 4), torch.ones(2, 5, 4, 4)).item(), 4)  # (1 / 5 + log 5) / 2
        0.9047
        >>> [tuple(x.shape) for x in loss.parameters()]
        [(5,), (5, 3, 1, 1), (5, 5, 1, 1), (5, 5, 1, 1)]
    """

    features = 'positions'
    pools = True
    per_level = True

    def __init__(self, variance: float = 5.0) -> None:
        super().__init__()
        check_number('variance', variance, EPS, strict=True)
        self.variance = variance
        self.scale: nn.Parameter | None = None  # a
        self.mean: nn.Sequential | None = None

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare maps (B, C, H, W), tokens (B, N, C) or vectors (B, C); the channels are free."""
        check_positions('VIDLoss', student, teacher, channels=False)
        if student.ndim == 4:
            student, teacher = match_size(student, teacher)
        if self.mean is None or self.scale is None:
            self._build(student, teacher)
        return vid_loss(self.mean(student), teacher, softplus(self.scale) + EPS)  # type: ignore[misc, arg-type]

    def _build(self, student: Tensor, teacher: Tensor) -> None:
        axis = 2 if student.ndim == 3 else 1
        start, end = student.shape[axis], teacher.shape[axis]
        layer: Any = partial(nn.Conv2d, kernel_size=1) if student.ndim == 4 else nn.Linear
        self.mean = nn.Sequential(
            layer(start, end, bias=False),
            nn.ReLU(),
            layer(end, end, bias=False),
            nn.ReLU(),
            layer(end, end, bias=False),
        ).to(student.device)
        # The inverse of softplus, without an overflow.
        rest = self.variance - EPS
        self.scale = nn.Parameter(torch.full((end,), rest + log(-expm1(-rest)), device=student.device))
