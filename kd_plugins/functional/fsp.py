"""Flow of the solution procedure."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor
from torch.nn.functional import mse_loss

from .checks import check_channels, check_maps
from .gram import distillation_loss, match_size, product


def _flow(first: Tensor, second: Tensor) -> tuple[Tensor, int]:
    """Return the sums of G over the positions, and their number."""
    first, second = match_size(first, second, 'max')
    return product(first.flatten(2), second.flatten(2).mT), first[0, 0].numel()


@partial(distillation_loss, takes_half=True)
def fsp_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Difference of how two networks get from the input of a stage to its output.

    ``G = F_1' F_2 / (h w)`` over the positions, one (C_1, C_2) matrix a sample, from the maps F_1 that enter and F_2
    that leave a stage; ``||G_T - G_S||_F^2``, summed over the matrix and averaged over the batch (equation 2).

    Args:
        student: The pair (F_1, F_2): (B, C_1, H_1, W_1) and (B, C_2, H_2, W_2). The larger is max-pooled to the
            smaller.
        teacher: Such a pair with the same B, C_1 and C_2, of any height and width; it gets no gradient.

    Returns:
        Scalar, in the fourth power of the features' unit.

    Raises:
        ValueError: Not two pairs of maps, a different batch or different channel counts.

    References:
        1. Yim et al.: A Gift from Knowledge Distillation, CVPR 2017.
    """
    for name, pair in (('student', student), ('teacher', teacher)):
        if isinstance(pair, Tensor) or len(pair) != 2:
            got = f'a tensor {tuple(pair.shape)}' if isinstance(pair, Tensor) else f'{len(pair)} maps'
            raise ValueError(f'fsp_loss: expected a pair of maps as {name}, got {got}; tap the input and the output')
    for s, t in zip(student, teacher, strict=True):
        check_maps('fsp_loss', s, t)
        check_channels('fsp_loss', s, t)
    (own, size), (other, other_size) = _flow(*student), _flow(*teacher)
    if size != other_size:
        other = other * (size / other_size)
    return mse_loss(own, other, reduction='sum') / (size**2 * len(student[0]))
