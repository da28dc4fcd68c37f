"""Softened logits."""

from torch import Tensor

from kd_plugins.functional import kd_loss
from kd_plugins.functional.checks import check_number
from kd_plugins.losses.base import DistillationLoss
from kd_plugins.registry import MODELS


@MODELS.register_module()
class KDLoss(DistillationLoss):
    """Divergence of softened class probabilities: :func:`kd_plugins.functional.kd_loss`, which includes tau^2.

    Args:
        tau: Temperature, above 0.

    Raises:
        ValueError: The temperature is out of range.

    Example:
        >>> import torch
        >>> from kd_plugins.losses import KDLoss
        >>> student, teacher = torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]).log()  # 1/2 and 1/2, 3/4 and 1/4
        >>> round(KDLoss(tau=1.0)(student, teacher).item(), 4)  # 3/4 log 3/2 + 1/4 log 1/2
        0.1308
    """

    features = 'logits'

    def __init__(self, tau: float = 4.0) -> None:
        super().__init__()
        check_number('tau', tau, 0, strict=True)
        self.tau = tau

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare logits (N, K)."""
        return kd_loss(student, teacher, self.tau)
