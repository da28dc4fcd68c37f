"""Attention transfer."""

from torch import Tensor

from kd_plugins.functional import at_loss
from kd_plugins.functional.at import CONVENTIONS
from kd_plugins.functional.checks import check_choice, check_number
from kd_plugins.losses.base import DistillationLoss
from kd_plugins.registry import MODELS


@MODELS.register_module()
class ATLoss(DistillationLoss):
    """Difference of attention maps: :func:`kd_plugins.functional.at_loss`.

    Args:
        convention: ``'paper'``, the norm of the difference (weight beta / 2), or ``'code'``, the authors' mean of its
            square (weight beta).
        p: Power of the absolute activation, at least 1.

    Raises:
        ValueError: An unknown convention or a power out of range.

    Example:
        >>> import torch
        >>> from kd_plugins.losses import ATLoss
        >>> student = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
        >>> teacher = torch.tensor([[[[5.0, 5.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]]]])
        >>> round(ATLoss()(student, teacher).item(), 4)  # of the maps (1, 0, 0, 0) and (1, 1, 0, 0) / sqrt(2)
        0.7654
    """

    features = 'maps'
    over_positions = True

    def __init__(self, convention: str = 'paper', p: float = 2) -> None:
        super().__init__()
        check_choice('convention', convention, CONVENTIONS)
        check_number('p', p, 1)
        self.convention = convention
        self.p = p

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare maps (B, C, H, W); the channels are free."""
        return at_loss(student, teacher, self.convention, self.p)
