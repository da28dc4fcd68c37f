"""Where channels are active."""

from torch import Tensor

from kd_plugins.functional import cwd_loss
from kd_plugins.functional.checks import check_number
from kd_plugins.losses.base import DistillationLoss
from kd_plugins.registry import MODELS


@MODELS.register_module()
class CWDLoss(DistillationLoss):
    """Distributions over the positions of a map, channel by channel: :func:`kd_plugins.functional.cwd_loss`.

    For dense prediction: the levels of FPNs, or class maps. Published settings: tau 1 and weight 10 for every level of
    the FPNs of Faster R-CNN and RetinaNet, R50 from R101; tau 4 and weight 3 for the class maps of a PSPNet, R18 from
    R101, 50 for its features.

    Args:
        tau: Temperature, above 0.

    Raises:
        ValueError: The temperature is not above 0.

    Example:
        >>> import torch
        >>> from kd_plugins.losses import CWDLoss
        >>> student, teacher = torch.zeros(1, 1, 1, 2), torch.tensor([[[[100.0, 0.0]]]])
        >>> CWDLoss()(student, teacher)  # log 2: the teacher is sure of the first of two positions
        tensor(0.6931)
        >>> CWDLoss()(student, teacher.flip(3) + 5)
        tensor(0.6931)
    """

    features = 'maps'
    pools = True
    over_positions = True

    def __init__(self, tau: float = 1.0) -> None:
        super().__init__()
        check_number('tau', tau, 0, strict=True)
        self.tau = tau

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare maps (B, C, H, W)."""
        return cwd_loss(student, teacher, self.tau)
