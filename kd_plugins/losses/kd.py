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
            location, and the mean over all of them.
        use_sigmoid: Whether the classes are independent, as those of ``MultiLabelLinearClsHead`` and of most dense
            detectors, and not of a softmax. The softmax of such logits can be compared as well.

    Raises:
        ValueError: An option is out of range.

    Example:
        >>> import torch
        >>> from kd_plugins.losses import KDLoss
        >>> student, teacher = torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]).log()  # 1/2 and 1/2, 3/4 and 1/4
        >>> round(KDLoss(tau=1.0)(student, teacher).item(), 4)  # 3/4 log 3/2 + 1/4 log 1/2
        0.1308
        >>> round(KDLoss(tau=1.0, use_sigmoid=True)(student[:, :1], teacher[:, :1]).item(), 4)  # 1/2, and 3/4 by 3 to 7
        0.1308
        >>> student, teacher = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[5.0, 15.0, 25.0]])
        >>> KDLoss(standardize=True)(student, teacher).item() == 0  # -1, 0 and 1 in both
        True
    """

    features = 'logits'

    def __init__(
        self, tau: float = 4.0, standardize: bool = False, anchors: int | None = None, use_sigmoid: bool = False
    ) -> None:
        super().__init__()
        check_number('tau', tau, 0, strict=True)
        if standardize and use_sigmoid:
            raise ValueError('standardize=True compares the classes of a softmax: leave it out, or use_sigmoid')
        if anchors is not None:
            check_number('anchors', anchors, 1, whole=True)
            self.features = 'maps'  # type: ignore[assignment,misc]  # of this one
        self.tau, self.standardize, self.anchors, self.use_sigmoid = tau, standardize, anchors, use_sigmoid

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare logits (N, K) or (N, L, K), or with ``anchors`` maps (N, A * K, H, W)."""
        if self.anchors is not None:
            student, teacher = (_at_locations(x, self.anchors) for x in (student, teacher))
        return kd_loss(student, teacher, self.tau, self.standardize, self.use_sigmoid)


def _at_locations(maps: Tensor, anchors: int) -> Tensor:
    """Return the logits (N, A * H * W, K) in maps (N, A * K, H, W)."""
    if maps.ndim != 4 or maps.shape[1] % anchors:
        raise ValueError(
            f'KDLoss: expected maps (B, {anchors} * K, H, W) with anchors={anchors}, got {tuple(maps.shape)}; tap the '
            'layer that predicts the classes, or correct anchors'
        )
    return maps.unflatten(1, (anchors, -1)).movedim(2, -1).flatten(1, -2)
