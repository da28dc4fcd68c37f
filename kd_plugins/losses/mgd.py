"""Features that are generated from masked ones."""

from torch import Tensor, nn

from kd_plugins.functional import draw_mask, mgd_loss
from kd_plugins.functional.checks import check_maps
from kd_plugins.functional.gram import match_size
from kd_plugins.functional.mgd import check_mask
from kd_plugins.losses.base import DistillationLoss
from kd_plugins.registry import MODELS


@MODELS.register_module()
class MGDLoss(DistillationLoss):
    """The teacher's maps, generated from the student's masked ones: :func:`kd_plugins.functional.mgd_loss`.

    Where the channels differ, a 1x1 convolution takes the student's to the teacher's. Random positions (or channels) of
    each image become 0, and two 3x3 convolutions with ReLU in between generate the whole map. They are parts of this
    module, sized by the first maps: their parameters train in the same step, at the optimiser's base learning rate, and
    are saved like an adapter's. Each level has its own. The masks are drawn from torch's generator, in every step anew.

    The loss is a sum over an image. Settings of the authors: weight 2e-5 and a share of 0.65 for every level of an FPN
    (RetinaNet, R50 from X101); a share of 0.15 of the channels for the last maps of a classifier (ResNet-18 from
    ResNet-34), with weight 7e-5 on ImageNet (1.2e-3 on CIFAR-100, in a config where it is switched off).

    Args:
        share: Probability of a position, or channel, to be masked; at least 0 and below 1.
        mask: What is masked, ``'positions'`` or ``'channels'``.

    Raises:
        ValueError: An option is out of range; in a call, the channels are others than at the first.

    Example:
        >>> import torch
        >>> from kd_plugins.losses import MGDLoss
        >>> loss = MGDLoss()
        >>> loss(torch.rand(2, 3, 4, 4), torch.rand(2, 5, 4, 4)).shape
        torch.Size([])
        >>> [tuple(x.shape) for x in loss.parameters()]
        [(5, 3, 1, 1), (5,), (5, 5, 3, 3), (5,), (5, 5, 3, 3), (5,)]
    """

    features = 'maps'
    pools = True
    per_level = True

    def __init__(self, share: float = 0.65, mask: str = 'positions') -> None:
        super().__init__()
        check_mask(share, mask)
        self.share, self.mask = share, mask
        self.align: nn.Module | None = None
        self.generation: nn.Module | None = None

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare maps (B, C, H, W); the channels are free."""
        check_maps('MGDLoss', student, teacher)
        student, teacher = match_size(student, teacher)
        if self.align is None or self.generation is None:
            self._build(student, teacher)
        student = self.align(student)  # type: ignore[misc]  # built above
        return mgd_loss(self.generation(student * draw_mask(student, self.share, self.mask)), teacher)  # type: ignore[misc]

    def _build(self, student: Tensor, teacher: Tensor) -> None:
        start, end = student.shape[1], teacher.shape[1]
        self.align = (nn.Identity() if start == end else nn.Conv2d(start, end, 1)).to(student.device)
        self.generation = nn.Sequential(
            nn.Conv2d(end, end, 3, padding=1), nn.ReLU(), nn.Conv2d(end, end, 3, padding=1)
        ).to(student.device)
