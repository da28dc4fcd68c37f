"""Directions of features."""

from torch import Tensor

from kd_plugins.functional import cosine_loss
from kd_plugins.functional.cosine import check_share
from kd_plugins.losses.base import DistillationLoss
from kd_plugins.registry import MODELS


@MODELS.register_module()
class CosineLoss(DistillationLoss):
    """One minus the cosine of two features, with a part of smooth-L1: :func:`kd_plugins.functional.cosine_loss`.

    Args:
        smooth_l1: Weight of smooth-L1, between 0 and 1; the cosine has the rest.

    Raises:
        ValueError: The weight is out of range.

    Example:
        >>> import torch
        >>> from kd_plugins.losses import CosineLoss
        >>> student, teacher = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 1.0]])  # a right angle
        >>> CosineLoss(smooth_l1=0.0)(student, teacher)
        tensor(1.)
        >>> round(CosineLoss()(student, teacher).item(), 4)  # 0.9 + 0.1 (2.5 + 0.5) / 2
        1.05
    """

    features = 'positions'
    pools = True

    def __init__(self, smooth_l1: float = 0.1) -> None:
        super().__init__()
        check_share(smooth_l1)
        self.smooth_l1 = smooth_l1

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare maps (B, C, H, W), tokens (B, N, C) or vectors (B, C)."""
        return cosine_loss(student, teacher, self.smooth_l1)
