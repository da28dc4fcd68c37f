"""Probabilistic knowledge transfer."""

from torch import Tensor

from kd_plugins.functional import pkt_loss
from kd_plugins.losses.base import DistillationLoss
from kd_plugins.registry import MODELS


@MODELS.register_module()
class PKTLoss(DistillationLoss):
    """Divergence of the samples' distributions over a batch: :func:`kd_plugins.functional.pkt_loss`.

    RepDistiller puts it on the pooled features before the classifier, with weight 30000, for all of its CIFAR-100 pairs
    at batches of 64.

    Example:
        >>> import torch
        >>> from kd_plugins.losses import PKTLoss
        >>> student, teacher = torch.eye(2), torch.ones(2, 3)  # rows (2/3, 1/3) and (1/2, 1/2)
        >>> round(PKTLoss()(student, teacher).item(), 4)  # 1/2 log(3/4) + 1/2 log(3/2), over two entries
        0.0294
    """

    features = 'embeddings'
    batch_relational = True

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare features (B, ...) of any sizes, B being the whole batch."""
        return pkt_loss(student, teacher)
