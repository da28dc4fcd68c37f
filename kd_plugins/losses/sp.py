"""Similarity preservation."""

from torch import Tensor

from kd_plugins.functional import sp_loss
from kd_plugins.losses.base import DistillationLoss
from kd_plugins.registry import MODELS


@MODELS.register_module()
class SPLoss(DistillationLoss):
    """Difference of the similarities within a batch: `kd_plugins.functional.sp_loss`."""

    features = 'embeddings'
    batch_relational = True

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare features (B, ...) of any sizes, B being the whole batch."""
        return sp_loss(student, teacher)
