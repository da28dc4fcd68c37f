"""Probabilistic knowledge transfer."""

from functools import partial

import torch
from torch import Tensor

from .checks import check_batch
from .gram import distillation_loss, gram, squared_norms

EPS = 1e-7  # the authors' addition to every probability


def _probabilities(features: Tensor) -> Tensor:
    rows = features.flatten(1)
    products = gram(rows, exact=True)  # what nearly equal rows differ is divided by
    squares = squared_norms(rows, products)
    scale = squares.masked_fill(squares <= 1e-24, torch.inf).rsqrt()  # a sample of norm 0 has no direction
    # Rounding may take a cosine below -1.
    similarities = (1 + products * (scale[:, None] * scale)).clamp(min=0)
    return similarities / similarities.sum(1, keepdim=True) + EPS


@partial(distillation_loss, takes_half=True)
def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Divergence of the distributions in which two networks see each sample among those of a batch.

    ``K_ij = (cos(f_i, f_j) + 1) / 2`` from the flattened features, each row scaled to sum 1, itself included; then
    ``sum_ij K^T_ij log(K^T_ij / K^S_ij) / B^2``, the mean over all entries as in the authors' code. 1e-7 is added to
    every probability, so that opposite samples have a finite divergence. The value depends on the batch size: give it
    the whole batch, not a device's share.

    Args:
        student: Features (B, ...).
        teacher: Features (B, ...), of any other size and rank; they get no gradient.

    Returns:
        Scalar in nats, at least 0. A sample whose features are all 0 is equally similar to all others, and gets no
        gradient.

    Raises:
        ValueError: Different or empty batches.

    References:
        1. Passalis, Tefas: Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018,
           arXiv 1803.10837. Its distributions leave the sample itself out.
        2. github.com/passalis/probabilistic_kt (followed here).
        3. github.com/HobbitLong/RepDistiller weighs it with 30000 on CIFAR-100, at batches of 64.
    """
    check_batch('pkt_loss', student, teacher)
    s, t = _probabilities(student), _probabilities(teacher)
    # Rows of s and t have one sum, so that s - t adds nothing to their divergence. With it, each entry is at least 0,
    # and those of nearly equal distributions do not cancel.
    ratio = s / t
    return (t * (ratio - 1 - ratio.log())).mean()
