"""Correlations of predictions."""

import torch
from torch import Tensor

from .checks import check_logits, check_number
from .gram import distillation_loss


@distillation_loss
def dist_loss(
    student: Tensor, teacher: Tensor, beta: float = 1.0, gamma: float = 1.0, tau: float = 1.0, eps: float = 1e-8
) -> Tensor:
    """Lack of correlation between two networks' probabilities, over the classes and over the samples.

    ``tau^2 [beta (1 - mean_i rho(p_S[i, :], p_T[i, :])) + gamma (1 - mean_k rho(p_S[:, k], p_T[:, k]))]`` with p the
    softmax of the logits over tau, (N, K), and rho Pearson's correlation ``x'y / (|x| |y| + eps)`` of centred x and y.
    The second part depends on the batch: give it the whole batch, not a device's share.

    A probability that does not vary, as that of a class masked by -inf, or any in a batch of one, correlates with
    nothing: rho is 0, without gradient. With the authors' eps, classes that vary little in both networks count less. Of
    two classes, the first part compares only the order.

    The authors use beta 1 and gamma 1 beside the whole cross-entropy, at tau 1 on ImageNet (ResNet-34 to ResNet-18), in
    a program that does not multiply by tau^2; a later version does. That they advise tau 4 for CIFAR-100 is recalled,
    unverified. Small logits get large gradients, since the size of p does not count.

    Args:
        student: Logits s, (N, K) or (N, L, K), whose N L positions are samples, too.
        teacher: Logits t of the same shape; they get no gradient.
        beta: Weight of the correlation over the classes, from 0.
        gamma: Weight of the correlation over the samples, from 0.
        tau: Temperature, above 0.
        eps: Added to the product of the two norms, above 0.

    Returns:
        Scalar, between 0 and ``2 tau^2 (beta + gamma)``.

    Raises:
        ValueError: The shapes differ, are not those of logits of two classes or more, or hold nothing; a number is out
            of range.

    References:
        1. Huang et al.: Knowledge Distillation from A Stronger Teacher, NeurIPS 2022, arXiv 2205.10536.
        2. github.com/hunto/DIST_KD.
    """
    check_weights(beta, gamma)
    check_number('tau', tau, 0, strict=True)
    check_number('eps', eps, 0, strict=True)
    check_logits('dist_loss', student, teacher, positions=True)
    p, q = ((x / tau).softmax(-1).flatten(0, -2) for x in (student, teacher))
    of_classes = 1 - _correlation(p - 1 / p.shape[1], q - 1 / q.shape[1], 1, eps).mean()
    # Not from the line above: of a far smaller probability, p - 1 / K keeps nothing but rounding.
    of_samples = 1 - _correlation(p - p.mean(0), q - q.mean(0), 0, eps).mean()
    return tau**2 * (beta * of_classes + gamma * of_samples)


def check_weights(beta: float, gamma: float) -> None:
    """Check the weights of :func:`dist_loss`."""
    check_number('beta', beta, 0)
    check_number('gamma', gamma, 0)
    check_number('beta + gamma', beta + gamma, 0, strict=True)


def _correlation(x: Tensor, y: Tensor, dim: int, eps: float) -> Tensor:
    length, other = (torch.linalg.vector_norm(z, dim=dim) for z in (x, y))
    # What does not vary has no direction, and dividing by eps alone would make its gradient huge.
    constant = torch.minimum(length.detach(), other) <= 1e-12
    return (x * y).sum(dim) / ((length * other).masked_fill(constant, torch.inf) + eps)
