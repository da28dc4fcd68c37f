"""Decoupled softened logits."""

from torch import Tensor

from kd_plugins.functional import dkd_loss
from kd_plugins.functional.checks import check_number
from kd_plugins.functional.dkd import check_weights
from kd_plugins.losses.base import DistillationLoss
from kd_plugins.registry import MODELS


@MODELS.register_module()
class DKDLoss(DistillationLoss):
    """Divergence of softened class probabilities in two parts: :func:`kd_plugins.functional.dkd_loss`.

    It needs labels, and includes tau^2.

    Args:
        alpha: Weight of the part of the labels, from 0.
        beta: Weight of the part of the other classes, from 0. It depends on the pair of networks: see the function.
        tau: Temperature, above 0.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> import torch
        >>> from kd_plugins.losses import DKDLoss
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[2.0, 3.0, 1.0]]).log()
        >>> labels = torch.tensor([0])  # b is (1/3, 2/3) in both, q (1/2, 1/2) and (3/4, 1/4)
        >>> round(DKDLoss(beta=2.0, tau=1.0)(student, teacher, labels).item(), 4)  # 2 (3/4 log 3/2 + 1/4 log 1/2)
        0.2616
    """

    features = 'logits'
    needs_labels = True

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, tau: float = 4.0) -> None:
        super().__init__()
        check_weights(alpha, beta)
        check_number('tau', tau, 0, strict=True)
        self.alpha, self.beta, self.tau = alpha, beta, tau

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Compare logits (N, K), with the classes (N,)."""
        return dkd_loss(student, teacher, labels, self.alpha, self.beta, self.tau)
