"""Correlations of predictions."""

from torch import Tensor

from kd_plugins.functional import dist_loss
from kd_plugins.functional.checks import check_number
from kd_plugins.functional.dist import check_weights
from kd_plugins.losses.base import DistillationLoss
from kd_plugins.registry import MODELS


@MODELS.register_module()
class DISTLoss(DistillationLoss):
    """Lack of correlation of class probabilities: :func:`kd_plugins.functional.dist_loss`, which includes tau^2.

    Args:
        beta: Weight of the correlation over the classes of a sample, from 0.
        gamma: Weight of the correlation over the samples of a batch, from 0.
        tau: Temperature, above 0.
        eps: Added to the product of two norms, above 0.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> import torch
        >>> from kd_plugins.losses import DISTLoss
        >>> logits = torch.tensor([[3.0, 0.0, 1.0], [0.0, 2.0, 1.0]])
        >>> round(DISTLoss()(logits, logits + 5).item(), 4)  # the same probabilities
        0.0
        >>> round(DISTLoss(beta=0.0)(logits, logits.flip(0)).item(), 4)  # of the other sample
        2.0
    """

    features = 'logits'
    batch_relational = True

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, tau: float = 1.0, eps: float = 1e-8) -> None:
        super().__init__()
        check_weights(beta, gamma)
        check_number('tau', tau, 0, strict=True)
        check_number('eps', eps, 0, strict=True)
        self.beta, self.gamma, self.tau, self.eps = beta, gamma, tau, eps

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare logits (N, K) or (N, L, K), N being the whole batch."""
        return dist_loss(student, teacher, self.beta, self.gamma, self.tau, self.eps)
