"""Maps at several resolutions."""

from torch import Tensor

from kd_plugins.functional import reviewkd_loss
from kd_plugins.losses.base import DistillationLoss
from kd_plugins.registry import MODELS


@MODELS.register_module()
class ReviewKDLoss(DistillationLoss):
    """Mean squares of maps at full size and pooled (HCL): :func:`kd_plugins.functional.reviewkd_loss`.

    Made for a term with ``adapter='abf'`` over the ends of all stages and the pooled features, see
    :class:`~kd_plugins.distillation.adapters.ABF`. The authors tap the teacher before the activation at the end of a
    stage, and the student behind it.

    Their weights on CIFAR-100, which rise over the first 20 epochs: 0.6 (ResNet-20 from ResNet-56), 1 (32 from 110), 5
    (ResNet-8x4 and ShuffleNetV1 from ResNet-32x4, WRN-16-2 and WRN-40-1 from WRN-40-2) and 8 (ShuffleNetV2 from
    ResNet-32x4); 1 on ImageNet (ResNet-18 from ResNet-34). For the levels of the FPNs of Faster R-CNN and RetinaNet: 1
    (R50 from R101), 1.2 (R18 from R101) and 2 (MobileNetV2 from R50).

    Example:
        >>> import torch
        >>> from kd_plugins.losses import ReviewKDLoss
        >>> loss = ReviewKDLoss()
        >>> loss(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 2.0))  # at every size
        tensor(4.)
        >>> board = (torch.arange(64).view(1, 1, 8, 8) + torch.arange(8)[:, None]) % 2  # averages are 1/2
        >>> round(loss(board.float(), torch.zeros(1, 1, 8, 8)).item(), 4)  # (1/2 + 7/8 1/4) / (15/8)
        0.3833
    """

    features = 'maps'
    pools = True

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare maps (B, C, H, W)."""
        return reviewkd_loss(student, teacher)
