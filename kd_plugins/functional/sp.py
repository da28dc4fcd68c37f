"""Similarity preservation."""

from functools import partial

from torch import Tensor, channels_last
from torch.nn.functional import mse_loss

from .checks import check_batch
from .gram import distillation_loss, gram, unit


def similarity_matrix(features: Tensor) -> Tensor:
    """Return how similar the samples of a batch are: ``Q Q'`` of the flattened features Q, its rows of L2 norm 1.

    Args:
        features: Features (B, ...).

    Returns:
        (B, B). A sample whose features are all 0 has a row of zeros.

    Example:
        >>> import torch
        >>> from kd_plugins.functional import similarity_matrix
        >>> similarity_matrix(torch.tensor([[3.0, 4.0], [4.0, -3.0], [0.0, 0.0]]))
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 0.]])
    """
    if features.ndim == 4 and features.is_contiguous(memory_format=channels_last):
        features = features.permute(0, 2, 3, 1)  # any order of the sums will do, and that of memory needs no copy
    return unit(gram(features.flatten(1)))


@partial(distillation_loss, takes_half=True)
def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Difference of the similarities that two networks see between the samples of a batch.

    ``G = Q Q'`` from the flattened features Q, each row scaled to **L2** norm 1; ``||G_T - G_S||_F^2 / B^2``. It
    depends on the batch size: give it the whole batch, not a device's share.

    Of bfloat16 features the products are good to 7e-6 on a processor that has units for them. Where the similarities of
    the two networks differ hardly more than that, as do those of nearly equal rows, the value is off: by 4e-6 for
    independent rows, by 3e-4 for rows that differ by 3 %, and by up to 1 % for still nearer ones.

    Args:
        student: Features (B, ...).
        teacher: Features (B, ...), of any other size and rank; they get no gradient.

    Returns:
        Scalar without unit. A sample whose features are all 0 has a row of zeros and gets no gradient from it.

    Raises:
        ValueError: Different or empty batches.

    References:
        1. Tung, Mori: Similarity-Preserving Knowledge Distillation, ICCV 2019, arXiv 1907.09682.
        2. github.com/HobbitLong/RepDistiller (its form was checked by the first author).
    """
    check_batch('sp_loss', student, teacher)
    return mse_loss(similarity_matrix(student), similarity_matrix(teacher))
