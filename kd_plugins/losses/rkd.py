"""Relations between the samples of a batch: distances and angles."""

from torch import Tensor

from kd_plugins.functional import rkd_loss
from kd_plugins.functional.checks import check_choice, check_number
from kd_plugins.functional.rkd import CONVENTIONS
from kd_plugins.losses.base import DistillationLoss
from kd_plugins.registry import MODELS


@MODELS.register_module()
class RKDLoss(DistillationLoss):
    """Distances and angles within a batch: :func:`kd_plugins.functional.rkd_loss`.

    Args:
        distance_weight: Weight of RKD-D, at least 0; 0 leaves it out.
        angle_weight: Weight of RKD-A, at least 0; 0 leaves it out.
        convention: ``'paper'``, means over the real pairs and triplets, or ``'code'``, the authors' means over N^2 and
            N^3 entries, some of them zero: (N - 1) / N and (N - 1) (N - 2) / N^2 of the paper's. The weights 25 and 50
            are for these.
        normalize: Scale the embeddings of both networks to L2 norm 1 first.

    Raises:
        ValueError: A weight below 0, both of them 0, or an unknown convention.

    Example:
        >>> import torch
        >>> from kd_plugins.losses import RKDLoss
        >>> student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # a right angle
        >>> round(RKDLoss()(student, 5 * student + 2).item(), 4)  # neither scale nor origin matters
        0.0
        >>> round(RKDLoss()(student, torch.eye(3)).item(), 4)  # compared with three equal angles
        3.1662
    """

    features = 'embeddings'
    batch_relational = True

    def __init__(
        self,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        convention: str = 'paper',
        normalize: bool = False,
    ) -> None:
        super().__init__()
        check_number('distance_weight', distance_weight, 0)
        check_number('angle_weight', angle_weight, 0)
        check_number('distance_weight + angle_weight', distance_weight + angle_weight, 0, strict=True)
        check_choice('convention', convention, CONVENTIONS)
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight
        self.convention = convention
        self.normalize = normalize

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare embeddings (B, ...) of any sizes, B being the whole batch."""
        return rkd_loss(student, teacher, self.distance_weight, self.angle_weight, self.convention, self.normalize)
