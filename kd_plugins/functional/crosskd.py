"""Predictions of dense detectors."""

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, kl_div, log_softmax

from .checks import check_number, check_shapes
from .gram import distillation_loss


def _check_rows(name: str, expected: str, matches: bool, student: Tensor, teacher: Tensor, weight: Tensor) -> None:
    remedy = 'give both networks the same images, classes and anchors, and one weight for each row'
    alike = student.shape == teacher.shape and weight.shape == student.shape[:1]
    check_shapes(matches and alike, name, expected, student, teacher, remedy)


@distillation_loss
def soft_focal_loss(student: Tensor, teacher: Tensor, weight: Tensor, beta: float = 1.0) -> Tensor:
    """Focal cross-entropy of independent class scores with the teacher's as soft labels.

    ``sum_i w_i sum_k |sigmoid(s_ik) - sigmoid(t_ik)|^beta BCE(s_ik, sigmoid(t_ik))``: the quality focal loss, with the
    teacher's probability in the place of the quality. The modulating factor has a gradient, too.

    Args:
        student: Logits s, (P, K): P positions (or anchors), K classes.
        teacher: Logits t, (P, K); they get no gradient.
        weight: Weights w, (P,).
        beta: Exponent of the modulating factor, at least 1.

    Returns:
        Scalar, a sum.

    Raises:
        ValueError: The shapes differ, or the exponent is below 1.

    References:
        1. Li et al.: Generalized Focal Loss, NeurIPS 2020, arXiv 2006.04388.
        2. Wang et al.: CrossKD: Cross-Head Knowledge Distillation for Object Detection, CVPR 2024, arXiv 2306.11369.
    """
    check_number('beta', beta, 1)
    _check_rows('soft_focal_loss', 'logits (P, K) of the same shape', student.ndim == 2, student, teacher, weight)
    target = teacher.sigmoid()
    entropy = binary_cross_entropy_with_logits(student, target, reduction='none')
    factor = (student.sigmoid() - target).abs()
    return (weight.to(entropy)[:, None] * (factor if beta == 1 else factor.pow(beta)) * entropy).sum()


@distillation_loss
def giou_loss(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """Generalised intersection over union of boxes, ``sum_i w_i (1 - GIoU(s_i, t_i))``.

    ``GIoU = IoU - (hull - union) / hull``, where the hull is the smallest box around both. An area of 0 counts as
    a millionth.

    Args:
        student: Boxes s, (P, 4), as (x1, y1, x2, y2).
        teacher: Boxes t, (P, 4); they get no gradient.
        weight: Weights w, (P,).

    Returns:
        Scalar, a sum of values between 0 and 2 times their weights.

    Raises:
        ValueError: The shapes differ.

    References:
        1. Rezatofighi et al.: Generalized Intersection over Union, CVPR 2019, arXiv 1902.09630.
    """
    boxes = student.ndim == 2 and student.shape[-1] == 4
    _check_rows('giou_loss', 'boxes (P, 4) of the same number', boxes, student, teacher, weight)

    def area(low: Tensor, high: Tensor) -> Tensor:
        width, height = (high - low).clamp(min=0).unbind(-1)
        return width * height

    (s_low, s_high), (t_low, t_high) = student.split(2, -1), teacher.split(2, -1)
    overlap = area(s_low.maximum(t_low), s_high.minimum(t_high))
    union = (area(s_low, s_high) + area(t_low, t_high) - overlap).clamp(min=1e-6)
    hull = area(s_low.minimum(t_low), s_high.maximum(t_high)).clamp(min=1e-6)
    return (weight.to(union) * (2 - overlap / union - union / hull)).sum()


@distillation_loss
def box_distribution_loss(student: Tensor, teacher: Tensor, weight: Tensor, tau: float = 1.0) -> Tensor:
    """Divergence of the distributions by which a GFL head states a box, its localisation knowledge.

    ``tau^2 sum_i w_i mean_e KL(softmax(t_ie / tau) || softmax(s_ie / tau))`` over the four edges e.

    Args:
        student: Logits s, (P, 4, R), of the distances from a position to the edges of its box.
        teacher: Logits t, (P, 4, R); they get no gradient.
        weight: Weights w, (P,).
        tau: Temperature, above 0.

    Returns:
        Scalar, a sum.

    Raises:
        ValueError: The shapes differ, or the temperature is not above 0.

    References:
        1. Zheng et al.: Localization Distillation for Dense Object Detection, CVPR 2022, arXiv 2102.12252.
    """
    check_number('tau', tau, 0, strict=True)
    edges = student.ndim == 3 and student.shape[1] == 4
    _check_rows('box_distribution_loss', 'logits (P, 4, R) of the same shape', edges, student, teacher, weight)
    student, teacher = (log_softmax(x / tau, -1) for x in (student, teacher))
    divergence = kl_div(student, teacher, reduction='none', log_target=True)
    return (weight.to(divergence) * divergence.sum(-1).mean(-1)).sum() * tau**2
