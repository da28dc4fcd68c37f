"""Directions of features."""

from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from .checks import check_number, check_positions
from .gram import distillation_loss, match_size, norm


def check_share(smooth_l1: float) -> None:
    """Check the option of :func:`cosine_loss`."""
    check_number('smooth_l1', smooth_l1, 0)
    if smooth_l1 > 1:
        raise ValueError(f'smooth_l1: expected a share between 0 and 1, got {smooth_l1!r}')


@distillation_loss
def cosine_loss(student: Tensor, teacher: Tensor, smooth_l1: float = 0.1) -> Tensor:
    """Difference of the directions of two features, and to a small part of their values.

    ``(1 - w) (1 - cos(s, t)) + w smooth-L1(s, t)`` with w = ``smooth_l1``. The cosine is taken over the channels and
    averaged over batch and positions; smooth-L1 is ``d^2 / 2`` for a difference ``|d| < 1``, else ``|d| - 1/2``,
    averaged over all elements. It fixes the scale, which the cosine leaves free. The authors use w = 0.1 for maps and
    w = 0 for the one vector of an image (a class token).

    Args:
        student: Features s: maps (B, C, H, W), tokens (B, N, C) or vectors (B, C).
        teacher: Features t of the same rank, B, C and N; they get no gradient. Where the maps differ in size, both are
            average-pooled to the smaller height and width.
        smooth_l1: Weight w of smooth-L1, between 0 and 1.

    Returns:
        Scalar; between 0 and 2 for w = 0. A vector of norm 0 has no direction: its cosine is 0, without gradient.

    Raises:
        ValueError: Wrong rank, a different batch, channel or token count, or a weight out of range.

    References:
        1. Ranzinger et al.: AM-RADIO: Agglomerative Vision Foundation Model, CVPR 2024, arXiv 2312.06709.
    """
    check_share(smooth_l1)
    check_positions('cosine_loss', student, teacher)
    if student.ndim == 4:
        student, teacher = (x.movedim(1, -1) for x in match_size(student, teacher))
    # Divided after the sum: three passes less over the features than by two unit vectors, forward and backward.
    # One norm after the other: the gradient through the product of two infinite ones would be 0 times infinity.
    cosine = (student * teacher).sum(-1) / norm(student) / norm(teacher)
    loss = (1 - smooth_l1) * (1 - cosine).mean()
    return loss + smooth_l1 * smooth_l1_loss(student, teacher) if smooth_l1 else loss
