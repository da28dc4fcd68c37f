"""Task loss of metric learning, for embeddings that are trained with labels."""

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from .checks import check_number


def batch_hard_triplet_loss(embeddings: Tensor, labels: Tensor, margin: float | None = 0.3) -> Tensor:
    """Triplet loss with the hardest positive and the hardest negative of each sample in the batch.

    With ``p_a = max_{j: y_j = y_a} ||x_a - x_j||_2`` and ``n_a = min_{j: y_j != y_a} ||x_a - x_j||_2``, the mean over
    the samples a of ``max(0, margin + p_a - n_a)``; without a margin, of ``log(1 + exp(p_a - n_a))``. Samples without
    another one of their label, or without one of another label, are left out.

    Args:
        embeddings: (N, D), compared in float32 (float64 stays) also under autocast.
        labels: (N,) integers.
        margin: Margin in the unit of the embeddings' distances, at least 0; None for the soft margin.

    Returns:
        Scalar; 0 where no sample has both a positive and a negative.

    Raises:
        ValueError: Other shapes, or a negative margin.

    References:
        1. Hermans, Beyer, Leibe: In Defense of the Triplet Loss for Person Re-Identification, arXiv 1703.07737.

    Example:
        >>> import torch
        >>> from kd_plugins.functional import batch_hard_triplet_loss
        >>> embeddings, labels = torch.tensor([[0.0], [1.0], [4.0], [2.0]]), torch.tensor([0, 0, 1, 1])
        >>> batch_hard_triplet_loss(embeddings, labels, margin=1.0)  # (0 + 1 + 0 + 2) / 4
        tensor(0.7500)
    """
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f'batch_hard_triplet_loss: expected embeddings (N, D) and labels (N,), got '
            f'{tuple(embeddings.shape)} and {tuple(labels.shape)}; pool maps to vectors first'
        )
    if margin is not None:
        check_number('margin', margin, 0)
    with torch.autocast(embeddings.device.type, enabled=False):
        x = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        # By differences: from a Gram matrix, distances between near samples are mostly rounding.
        distances = torch.cdist(x, x, compute_mode='donot_use_mm_for_euclid_dist')
    same = labels[:, None] == labels
    positive = distances.masked_fill(~same, -torch.inf).amax(1)
    negative = distances.masked_fill(same, torch.inf).amin(1)
    counted = (same.sum(1) > 1) & ~same.all(1)
    gap = torch.where(counted, positive - negative, 0)
    losses = softplus(gap) if margin is None else relu(margin + gap)
    return (losses * counted).sum() / counted.sum().clamp_min(1)
