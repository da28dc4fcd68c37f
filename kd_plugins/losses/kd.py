"""Softened logits."""

from torch import Tensor

from kd_plugins.functional import kd_loss
from kd_plugins.functional.checks import check_number
from kd_plugins.losses.base import DistillationLoss
from kd_plugins.registry import MODELS


@MODELS.register_module()
class KDLoss(DistillationLoss):
    """Divergence of softened class probabilities: :func:`kd_plugins.functional.kd_loss`, which includes tau^2.

    Args:
        tau: Temperature, above 0.
        standardize: Whether the logits of both networks are standardised over the classes first (LSKD), so that the
            student need not match their size.
        anchors: Number A of anchors where the features are maps (B, A * K, H, W), as a dense detector's head predicts
            them: 9 for RetinaNet, 1 for FCOS or GFL. The softmax is then over the K classes of each anchor at each
            location, and the mean over all of them. The logits of independent (sigmoid) scores serve as well.

    Raises:
        ValueError: An option is out of range.

    Example:
        >>> import torch
        >>> from kd_plugins.losses import KDLoss
        >>> student, teacher = torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]).log()  # 1/2 and 1/2, 3/4 and 1/4
        >>> round(KDLoss(tau=1.0)(student, teacher).item(), 4)  # 3/4 log 3/2 + 1/4 log 1/2
        0.1308
        >>> student, teacher = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[5.0, 15.0, 25.0]])
        >>> KDLoss(standardize=True)(student, teacher).item() == 0  # -1, 0 and 1 in both
        True
    """

    features = 'logits'

    def __init__(self, tau: float = 4.0, standardize: bool = False, anchors: int | None = None) -> None:
        super().__init__()
        check_number('tau', tau, 0, strict=True)
        if anchors is not None:
            check_number('anchors', anchors, 1, whole=True)
            self.features = 'maps'  # type: ignore[assignment,misc]  # of this one
        self.tau, self.standardize, self.anchors = tau, standardize, anchors

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare logits (N, K) or (N, L, K), or with ``anchors`` maps (N, A * K, H, W)."""
        if self.anchors is not None:
            student, teacher = (_at_locations(x, self.anchors) for x in (student, teacher))
        return kd_loss(student, teacher, self.tau, self.standardize)


def _at_locations(maps: Tensor, anchors: int) -> Tensor:
    """Return the logits (N, A * H * W, K) in maps (N, A * K, H, W)."""
    if maps.ndim != 4 or maps.shape[1] % anchors:
        raise ValueError(
            f'KDLoss: expected maps (B, {anchors} * K, H, W) with anchors={anchors}, got {tuple(maps.shape)}; tap the '
            'layer that predicts the classes, or correct anchors'
        )
    return maps.unflatten(1, (anchors, -1)).movedim(2, -1).flatten(1, -2)
