"""Softened logits of the classes other than the label, normalised."""

from torch import Tensor

from kd_plugins.functional import nkd_loss
from kd_plugins.functional.checks import check_number
from kd_plugins.losses.base import DistillationLoss
from kd_plugins.registry import MODELS


@MODELS.register_module()
class NKDLoss(DistillationLoss):
    """Cross-entropy with the teacher's probabilities in two parts: :func:`kd_plugins.functional.nkd_loss`.

    It needs labels, and includes tau^2.

    Args:
        gamma: Weight of the part of the classes other than the label, from 0.
        tau: Temperature of that part, above 0.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> import torch
        >>> from kd_plugins.losses import NKDLoss
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[2.0, 3.0, 1.0]]).log()
        >>> labels = torch.tensor([0])
        >>> round(NKDLoss(gamma=2.0)(student, teacher, labels).item(), 4)  # 1/3 log 3 + 2 log 2
        1.7525
    """

    features = 'logits'
    needs_labels = True

    def __init__(self, gamma: float = 1.5, tau: float = 1.0) -> None:
        super().__init__()
        check_number('gamma', gamma, 0)
        check_number('tau', tau, 0, strict=True)
        self.gamma, self.tau = gamma, tau

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Compare logits (N, K), with the classes (N,)."""
        return nkd_loss(student, teacher, labels, self.gamma, self.tau)
