"""Predictions that a teacher's head makes from a student's features."""

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from kd_plugins.functional import box_distribution_loss, giou_loss, soft_focal_loss
from kd_plugins.functional.checks import check_number
from kd_plugins.losses.base import DistillationLoss
from kd_plugins.registry import MODELS


class Predictions(NamedTuple):
    """What a dense detector's head predicts at the P positions (or anchors) of all images and levels.

    Attributes:
        scores: Logits (P, K) of the classes.
        boxes: Boxes (P, 4).
        edges: Logits (P, 4, R) of the distributions of the boxes' edges, of a head that predicts them (GFL).
        centerness: Logits (P,), of a head that has them beside anchors (ATSS).
    """

    scores: Tensor
    boxes: Tensor
    edges: Tensor | None = None
    centerness: Tensor | None = None


@MODELS.register_module()
class CrossKDLoss(DistillationLoss):
    """Predictions of a dense detector's teacher, from its own features and from the student's (CrossKD).

    The student's features after ``layer`` convolutions of each branch of its head go through the later, frozen layers
    of the teacher's head. What these predict is compared with the teacher's own predictions, so that the last layers
    of the student's head follow the labels alone. The term of this loss, a
    :class:`~kd_plugins.distillation.crosskd.CrossKDTerm`, taps the two heads::

        dict(name='crosskd', loss=dict(type='kd_plugins.CrossKDLoss'), student='bbox_head', teacher='bbox_head')

    With w = the teacher's highest class probability at a position, the loss is the sum of

    - ``classification`` times :func:`~kd_plugins.functional.soft_focal_loss`, divided by the number of positives;
    - ``boxes`` times :func:`~kd_plugins.functional.giou_loss` with weights w;
    - of a head that predicts distributions (GFL), ``distributions`` times
      :func:`~kd_plugins.functional.box_distribution_loss` with weights w;
    - of ATSS, ``centerness`` times the binary cross-entropy of the centerness, at positions with an object, divided by
      the number of positives. (FCOS's is left out.)

    Boxes and distributions are divided by the sum of w for a head with distributions, else by the number of positives.
    All is as in the authors' code. The defaults are the authors' for RetinaNet and ATSS; they have ``boxes=2.0`` for
    GFL, and ``layer=2, classification=0.4, boxes=0.75`` for FCOS, with -log IoU in the place of 1 - GIoU.

    Args:
        layer: Number of convolutions of the student's branches that its features come from, at least 1.
        beta: Exponent of the focal loss, at least 1.
        classification: Weight of the classes.
        boxes: Weight of the boxes.
        distributions: Weight of the distributions of the boxes' edges.
        centerness: Weight of the centerness.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> import torch
        >>> from kd_plugins.losses import CrossKDLoss
        >>> scores, boxes = torch.tensor([[2.0, -2.0]]), torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        >>> moved = (scores, boxes + torch.tensor([1.0, 0.0, 1.0, 0.0]))  # IoU and GIoU of a third, w = 0.88
        >>> round(CrossKDLoss()(moved, (scores, boxes), weight=torch.ones(1), positives=1.0).item(), 3)
        0.587

    References:
        1. Wang et al.: CrossKD: Cross-Head Knowledge Distillation for Object Detection, CVPR 2024, arXiv 2306.11369.
        2. github.com/jbwang1997/CrossKD
    """

    features = 'heads'

    def __init__(
        self,
        layer: int = 3,
        beta: float = 1.0,
        classification: float = 1.0,
        boxes: float = 1.0,
        distributions: float = 3.0,
        centerness: float = 1.0,
    ) -> None:
        super().__init__()
        check_number('layer', layer, 1, whole=True)
        check_number('beta', beta, 1)
        check_number('classification', classification, 0)
        check_number('boxes', boxes, 0)
        check_number('distributions', distributions, 0)
        check_number('centerness', centerness, 0)
        self.layer = layer
        self.beta = beta
        self.classification = classification
        self.boxes = boxes
        self.distributions = distributions
        self.centerness = centerness

    def forward(
        self,
        student: tuple[Tensor | None, ...],
        teacher: tuple[Tensor | None, ...],
        weight: Tensor,
        positives: float,
        objects: Tensor | None = None,
    ) -> Tensor:
        """Compare predictions at P positions (or anchors) of all images and levels.

        Args:
            student: :class:`Predictions` from the student's features.
            teacher: Those from the teacher's features.
            weight: Weights (P,), 0 where a position has no target.
            positives: Number of positions with an object.
            objects: Which positions (P,) these are; None: none. Only the centerness needs it.
        """
        own, other = Predictions(*student), Predictions(*teacher)  # type: ignore[arg-type]  # the first two are there
        importance = other.scores.detach().float().sigmoid().amax(1) * (weight > 0)
        count = positives if other.edges is None else importance.sum().clamp(min=1e-6)
        loss = self.classification * soft_focal_loss(own.scores, other.scores, weight, self.beta) / positives
        loss = loss + self.boxes * giou_loss(own.boxes, other.boxes, importance) / count
        if own.edges is not None and other.edges is not None:
            loss = loss + self.distributions * box_distribution_loss(own.edges, other.edges, importance) / count
        if own.centerness is not None and other.centerness is not None and objects is not None:
            target = other.centerness.detach().sigmoid()
            entropies = binary_cross_entropy_with_logits(own.centerness, target, reduction='none')
            loss = loss + self.centerness * (entropies * objects).sum() / positives
        return loss
