"""Variational information distillation."""

from torch import Tensor

from .checks import check_positions
from .gram import distillation_loss, match_size


@distillation_loss
def vid_loss(student: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    """Negative log-likelihood of the teacher's features under a Gaussian whose mean is predicted from the student's.

    ``((s - t)^2 / v_c + log v_c) / 2``, averaged over all elements, with a variance v for each channel c. Up to
    constants, that bounds the mutual information of the two layers.

    Args:
        student: Predicted means s: maps (B, C, H, W), tokens (B, N, C) or vectors (B, C).
        teacher: Features t of the same rank, B, C and N; they get no gradient. Where the maps differ in size, both are
            average-pooled to the smaller height and width.
        variance: Variances v (C,), above 0; they are trained with the means.

    Returns:
        Scalar in nats, which is below 0 where the variances are small enough.

    Raises:
        ValueError: Wrong rank, a different batch, channel or token count, or not one variance a channel.

    References:
        1. Ahn et al.: Variational Information Distillation for Knowledge Transfer, CVPR 2019, arXiv 1904.05835.
        2. github.com/HobbitLong/RepDistiller, which has its authors' code, and weighs it with 1 on CIFAR-100.
    """
    check_positions('vid_loss', student, teacher)
    if student.ndim == 4:
        student, teacher = match_size(student, teacher)
    axis = 2 if student.ndim == 3 else 1
    if variance.shape != (channels := student.shape[axis : axis + 1]):
        raise ValueError(f'vid_loss: expected variances of shape {tuple(channels)}, got {tuple(variance.shape)}')
    # Of each channel first: dividing every element by its variance would take twice the time.
    squares = (student - teacher).square().mean([x for x in range(student.ndim) if x != axis])
    return (squares / variance + variance.log()).mean() / 2
