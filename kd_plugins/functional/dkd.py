"""Decoupled softened logits."""

import torch
from torch import Tensor

from .checks import check_labels, check_logits, check_number
from .gram import distillation_loss
from .kd import expectation


def other_classes(logits: Tensor, labels: Tensor) -> Tensor:
    """Return logits (N, K) in which the one of the label is so small that a softmax leaves it out.

    It is finite, so that a row whose other classes are all masked by -inf has a softmax, and a gradient of 0.
    """
    return logits.scatter(1, labels[:, None], torch.finfo(logits.dtype).min)


@distillation_loss
def dkd_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, alpha: float = 1.0, beta: float = 8.0, tau: float = 4.0
) -> Tensor:
    """Divergence of softened class probabilities, its parts of the labels and of the other classes weighed apart.

    ``tau^2 [alpha KL(b_T || b_S) + beta KL(q_T || q_S)]``, averaged over the batch. With p the softmax of the logits
    over tau and y the label, ``b = (p_y, 1 - p_y)``, and q is the softmax over the classes other than y. The plain
    divergence, :func:`~kd_plugins.functional.kd_loss`, is that of alpha = 1 and a beta of ``1 - p_T,y`` for each image:
    the surer the teacher, the less it says about the other classes. Of two classes, q has one, and its part is 0.

    The authors use alpha 1 beside the whole cross-entropy. On CIFAR-100, at tau 4 and with a weight that rises over the
    first 20 epochs, beta is 2 for ResNet-56 to ResNet-20 and ResNet-110 to ResNet-32; 6 for WRN-40-2 to WRN-16-2 and
    WRN-40-1, and for VGG-13 to VGG-8; 8 for ResNet-32x4 to ResNet-8x4 and ShuffleNetV2, and for ResNet-50 to
    MobileNetV2. On ImageNet, at tau 1, it is 0.5 for ResNet-34 to ResNet-18.

    Args:
        student: Logits s, (N, K), of two classes or more.
        teacher: Logits t of the same shape; they get no gradient. A class masked by -inf adds nothing.
        labels: Classes y, (N,), of type int64.
        alpha: Weight of the part of the labels, from 0.
        beta: Weight of the part of the other classes, from 0.
        tau: Temperature, above 0.

    Returns:
        Scalar, in nats times tau^2.

    Raises:
        ValueError: The shapes differ, are not those of logits, or hold nothing; a label is none of the classes; a
            number is out of range.

    References:
        1. Zhao et al.: Decoupled Knowledge Distillation, CVPR 2022, arXiv 2203.08679.
        2. github.com/megvii-research/mdistiller (it takes the logarithm of p, which is -inf where p underflows).
    """
    check_weights(alpha, beta)
    check_number('tau', tau, 0, strict=True)
    check_logits('dkd_loss', student, teacher)
    check_labels('dkd_loss', student, labels)
    (label, others), (sure, rest) = (_decoupled(x / tau, labels) for x in (student, teacher))
    of_labels = expectation(sure.exp(), label - sure)
    of_others = expectation(rest.exp().scatter_(1, labels[:, None], 0), others - rest)
    return (alpha * of_labels + beta * of_others) * (-(tau**2) / len(student))


def check_weights(alpha: float, beta: float) -> None:
    """Check the weights of :func:`dkd_loss`."""
    check_number('alpha', alpha, 0)
    check_number('beta', beta, 0)
    check_number('alpha + beta', alpha + beta, 0, strict=True)


def _decoupled(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithms of b, (N, 2), and of q, (N, K)."""
    others = other_classes(logits, labels)
    two = torch.cat([logits.gather(1, labels[:, None]), others.logsumexp(1, keepdim=True)], 1)
    return two.log_softmax(1), others.log_softmax(1)
