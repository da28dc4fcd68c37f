"""Correlation of channels."""

import torch
from torch import Tensor

from kd_plugins.functional import pkd_loss
from kd_plugins.losses.base import DistillationLoss
from kd_plugins.registry import MODELS
from kd_plugins.utils.distributed import summed


@MODELS.register_module()
class PKDLoss(DistillationLoss):
    """One minus the correlation of each channel over batch and positions: :func:`kd_plugins.functional.pkd_loss`.

    Made for the levels of two detectors' FPNs. The authors weigh every level with 6 (Faster R-CNN R50 from R101) or 10
    (RetinaNet R50 from X101 or FCOS X101), on the first four levels.

    Under data-parallel a channel is standardised over the images of all processes, so that the loss does not depend on
    their number (the authors' code: over those of each). Only sums of a channel are exchanged, never maps.

    Example:
        >>> import torch
        >>> from kd_plugins.losses import PKDLoss
        >>> student, teacher = torch.tensor([[[[1.0, 2.0, 3.0]]]]), torch.tensor([[[[10.0, 20.0, 30.0]]]])
        >>> PKDLoss()(student, teacher), PKDLoss()(student, -teacher)
        (tensor(0.), tensor(2.0000))
    """

    features = 'maps'
    pools = True

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare maps (B, C, H, W)."""
        # A dry run, without gradient, is local to each process.
        return pkd_loss(student, teacher, summed) if torch.is_grad_enabled() else pkd_loss(student, teacher)
