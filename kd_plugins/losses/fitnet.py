"""Hints: direct regression of features."""

from torch import Tensor

from kd_plugins.functional import fitnet_loss
from kd_plugins.functional.checks import check_choice
from kd_plugins.functional.fitnet import REDUCTIONS
from kd_plugins.losses.base import DistillationLoss
from kd_plugins.registry import MODELS


@MODELS.register_module()
class FitNetLoss(DistillationLoss):
    """Half the squared difference of two features: :func:`kd_plugins.functional.fitnet_loss`.

    Args:
        reduction: ``'mean'`` over all elements, or ``'sum'`` over a sample and mean over the batch (the paper's).

    Raises:
        ValueError: An unknown reduction.

    Example:
        >>> import torch
        >>> from kd_plugins.losses import FitNetLoss
        >>> student, teacher = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 2.0)
        >>> FitNetLoss()(student, teacher), FitNetLoss(reduction='sum')(student, teacher)
        (tensor(2.), tensor(96.))
    """

    features = 'positions'
    pools = True

    def __init__(self, reduction: str = 'mean') -> None:
        super().__init__()
        check_choice('reduction', reduction, REDUCTIONS)
        self.reduction = reduction

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare maps (B, C, H, W), tokens (B, N, C) or vectors (B, C)."""
        return fitnet_loss(student, teacher, self.reduction)
