"""Maps at several resolutions."""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d

from .checks import check_channels, check_maps
from .gram import distillation_loss, match_size, with_gradient

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
    with torch.no_grad():
        difference = student - teacher
        sides = [side for side in SIDES if side < min(difference.shape[2:])]
        weights = [0.5**i for i in range(1 + len(sides))]
        # What a squared element counts in the loss, at full size and in the cells of each side.
        full, *parts = (weight / sum(weights) / (student.shape[0] * student.shape[1]) for weight in weights)
        full /= difference[0, 0].numel()
        squares = [difference.new_full((n, n), part / n**2) for n, part in zip(sides, parts, strict=True)]
        # Pooling is linear, and a product with the cells of all sides at once reads the maps a single time.
        rows, columns = (_cells(difference, axis, sides) for axis in (2, 3))
        pooled = rows.mT @ difference @ columns
        weighted = torch.block_diag(difference.new_empty((0, 0)), *squares) * pooled  # maps of one pixel have no sides
        value = full * difference.square().sum() + (weighted * pooled).sum()
        gradient = difference.mul_(2 * full).add_(rows @ weighted @ columns.mT, alpha=2)
    return with_gradient(student, value, gradient)


def _cells(maps: Tensor, axis: int, sides: list[int]) -> Tensor:
    """Return the matrix (N, sum of the sides) that averages N positions into cells, for every number of cells."""
    eye = torch.eye(maps.shape[axis], dtype=maps.dtype, device=maps.device)
    return torch.cat([eye[:, :0], *(adaptive_avg_pool1d(eye, side) for side in sides)], 1)
