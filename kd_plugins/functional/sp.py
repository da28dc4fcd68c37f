"""Similarity preservation."""

from functools import partial

from torch import Tensor, channels_last
from torch.nn.functional import mse_loss

from .common import check_batch, distillation_loss, gram, unit


def _similarity(x: Tensor) -> Tensor:
    if x.ndim == 4 and x.is_contiguous(memory_format=channels_last):
        x = x.permute(0, 2, 3, 1)  # the order is of no matter: that of memory needs no copy
    x = x.flatten(1)
    return unit(gram(x))


@partial(distillation_loss, takes_half=True)
def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Difference of which samples of a batch two networks find alike.

    ``G = Q Q'`` from the flattened features Q, each row scaled to **L2** norm 1; ``||G_T - G_S||_F^2 / B^2``. It
    depends on the batch size: give it the whole batch, not a device's share.

    Args:
        student: Features (B, ...).
        teacher: Features (B, ...), of any other size and rank; no gradient goes back to them.

    Returns:
        Scalar without unit. A sample whose features are all 0 has a row of zeros and gets no gradient from it.

    Raises:
        ValueError: Different or empty batches.

    References:
        1. Tung, Mori: Similarity-Preserving Knowledge Distillation, ICCV 2019, arXiv 1907.09682.
        2. github.com/HobbitLong/RepDistiller (its form was checked by the first author).
    """
    check_batch('sp_loss', student, teacher)
    return mse_loss(_similarity(student), _similarity(teacher))
