"""Maps at several resolutions."""

from torch import Tensor

from .checks import check_channels, check_maps
from .gram import distillation_loss, match_size, resized

SIDES = (4, 2, 1)


@distillation_loss
def reviewkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of two maps at full size and pooled: the hierarchical context loss (HCL).

    Mean squares of the difference at full size and average-pooled to 4 x 4, 2 x 2 and 1 x 1 cells, with weights 1, 1/2,
    1/4 and 1/8, divided by the sum of the weights. A size counts where both height and width are above it; the authors'
    maps are square.

    Args:
        student: Maps s (B, C, H, W).
        teacher: Maps t with the same B and C; they get no gradient. Where the maps differ in size, both are
            average-pooled to the smaller height and width.

    Returns:
        Scalar, in squared units of the features.

    Raises:
        ValueError: Not maps, or another batch or channel count.

    References:
        1. Chen et al.: Distilling Knowledge via Knowledge Review, CVPR 2021, arXiv 2104.09044, section 3.4.
        2. dvlab-research/ReviewKD, ``CIFAR-100/model/reviewkd.py``.
    """
    check_maps('reviewkd_loss', student, teacher)
    check_channels('reviewkd_loss', student, teacher)
    student, teacher = match_size(student, teacher)
    difference = student - teacher  # pooling is linear
    loss, weight, total = difference.square().mean(), 1.0, 1.0
    for side in SIDES:
        if side < min(difference.shape[2:]):
            weight /= 2
            total += weight
            loss = loss + weight * resized(difference, (side, side)).square().mean()
    return loss / total
