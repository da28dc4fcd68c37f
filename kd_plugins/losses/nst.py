"""Neuron selectivity transfer."""

from torch import Tensor

from kd_plugins.functional import nst_loss
from kd_plugins.functional.nst import check_kernel
from kd_plugins.losses.base import DistillationLoss
from kd_plugins.registry import MODELS


@MODELS.register_module()
class NSTLoss(DistillationLoss):
    """Squared maximum mean discrepancy of channel patterns: :func:`kd_plugins.functional.nst_loss` (weight lambda / 2).

    Args:
        kernel: ``'poly'``, ``'linear'`` or ``'gaussian'``.
        degree: Degree of ``'poly'``, a whole number from 1.
        c: Constant of ``'poly'``, at least 0.
        bandwidth: sigma^2 of ``'gaussian'``: ``'cross'``, ``'all'`` or a number above 0.

    Raises:
        ValueError: An unknown kernel or bandwidth, or a number out of range.

    Example:
        >>> import torch
        >>> from kd_plugins.losses import NSTLoss
        >>> student, teacher = torch.tensor([[[[1.0, 0]]]]), torch.tensor([[[[0.0, 1]]]])  # active at another position
        >>> NSTLoss()(student, teacher)
        tensor(2.)
        >>> NSTLoss()(student, torch.cat([3 * student, student], 1))  # neither scale nor number of channels matters
        tensor(0.)
    """

    features = 'maps'
    pools = True
    over_positions = True

    def __init__(self, kernel: str = 'poly', degree: int = 2, c: float = 0.0, bandwidth: str | float = 'cross') -> None:
        super().__init__()
        check_kernel(kernel, degree, c, bandwidth)
        self.kernel = kernel
        self.degree = degree
        self.c = c
        self.bandwidth = bandwidth

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare maps (B, C, H, W); the channels are free."""
        return nst_loss(student, teacher, self.kernel, self.degree, self.c, self.bandwidth)
