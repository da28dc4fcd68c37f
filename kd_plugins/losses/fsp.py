"""Flow of the solution procedure."""

from collections.abc import Sequence

from torch import Tensor

from kd_plugins.functional import fsp_loss
from kd_plugins.losses.base import DistillationLoss
from kd_plugins.registry import MODELS


@MODELS.register_module()
class FSPLoss(DistillationLoss):
    """Difference of the flows through a stage: :func:`kd_plugins.functional.fsp_loss`.

    Example:
        >>> import torch
        >>> from kd_plugins.losses import FSPLoss
        >>> student = torch.ones(1, 2, 4, 4), torch.ones(1, 3, 2, 2)
        >>> teacher = torch.ones(1, 2, 8, 8), torch.zeros(1, 3, 4, 4)
        >>> FSPLoss()(student, teacher)  # of two matrices (2, 3), of ones and of zeros
        tensor(6.)
    """

    features = 'maps'
    takes_pairs = True

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Compare pairs of maps, the input and the output of a stage."""
        return fsp_loss(student, teacher)
