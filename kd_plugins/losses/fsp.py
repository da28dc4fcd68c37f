"""Flow of the solution procedure."""

from collections.abc import Sequence

from torch import Tensor

from kd_plugins.functional import fsp_loss
from kd_plugins.losses.base import DistillationLoss
from kd_plugins.registry import MODELS


@MODELS.register_module()
class FSPLoss(DistillationLoss):
    """Difference of the flows through a stage: `kd_plugins.functional.fsp_loss`."""

    features = 'maps'
    takes_pairs = True

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Compare pairs of maps, the input and the output of a stage."""
        return fsp_loss(student, teacher)
