"""Similarity preservation."""

from torch import Tensor

from kd_plugins.functional import sp_loss
from kd_plugins.losses.base import DistillationLoss
from kd_plugins.registry import MODELS


@MODELS.register_module()
class SPLoss(DistillationLoss):
    """Difference of the similarities within a batch: :func:`kd_plugins.functional.sp_loss`.

    Example:
        >>> import torch
        >>> from kd_plugins.losses import SPLoss
        >>> student, teacher = torch.eye(2), torch.ones(2, 3)  # two samples: nothing in common, and the same
        >>> round(SPLoss()(student, teacher).item(), 4)  # of the rows (1, 0) and (1, 1) / sqrt(2)
        0.2929
    """

    features = 'embeddings'
    batch_relational = True

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare features (B, ...) of any sizes, B being the whole batch."""
        return sp_loss(student, teacher)
