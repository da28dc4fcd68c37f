"""Contrastive representation distillation."""

from math import log
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .checks import check_batch, check_channels, check_number, check_shapes
from .gram import distillation_loss, refuse_second_derivative

_PART = 2**20  # numbers in the largest matrix of scores


class _Noise(torch.autograd.Function):
    """Mean over the other classes' entries of a bank of ``log(1 + exp(score))``, (N,), for anchors (N, D).

    The gradient is computed with the value, since the bank may have changed by the backward pass, and a part of the
    bank at a time, so that no matrix has a column for each of its entries.
    """

    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, bank: Tensor, labels: Tensor, bank_labels: Tensor, tau: float, shift: float
    ) -> Tensor:
        scaled, grad = anchors / tau, torch.zeros_like(anchors)
        total, count = anchors.new_zeros(len(anchors)), anchors.new_zeros(len(anchors))
        size = max(1, _PART // len(anchors))
        for part, part_labels in zip(bank.split(size), bank_labels.split(size), strict=True):
            same = labels[:, None] == part_labels
            scores = (scaled @ part.mT).sub_(shift).masked_fill_(same, -torch.inf)
            total += softplus(scores).sum(1)
            grad += scores.sigmoid_() @ part
            count += len(part) - same.sum(1)
        count.clamp_(min=1)  # all entries may be of one class
        ctx.save_for_backward(grad / (tau * count[:, None]))
        return total / count

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative('CRD has')
        (slope,) = ctx.saved_tensors
        return grad[:, None] * slope, None, None, None, None, None


@distillation_loss
def crd_loss(
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    labels: Tensor,
    bank_labels: Tensor,
    negatives: int = 16384,
    tau: float = 0.07,
) -> Tensor:
    """Noise-contrastive loss that tells the other network's embedding of an image from those of other classes.

    ``h(s, t) = e / (e + n / M)`` with ``e = exp(s't / tau) / Z`` estimates how likely two embeddings are to be of one
    image, for n negatives among the M entries of a memory bank; ``-log h(s, t) - n mean log(1 - h(s, b))``, averaged
    over the batch, the mean being over all entries b of other classes. That is the paper's objective. Its authors' code
    estimates the mean by n entries that it draws for each image, a gather of N n D numbers, with the same expectation.

    Z scales ``exp(s't / tau)`` to mean 1/M over a bank of random directions. There it is ``M exp(1 / (2 D tau^2))`` on
    average, which is used here; the authors' code measures it on the first batch.

    Args:
        student: Embeddings s (N, D) of one network, of L2 norm 1.
        teacher: Embeddings t (N, D) of the same images in the other network's bank; they get no gradient.
        bank: Entries b (M, D), all of that bank or a fair part of it; no gradient. Changing it after the call does not
            change the gradient of s.
        labels: Classes (N,) of the images.
        bank_labels: Classes (M,) of the entries; one that has no embedding of an image yet may have any other.
        negatives: Number n.
        tau: Temperature.

    Returns:
        Scalar in nats, at least 0.

    Raises:
        ValueError: Wrong shapes, or a number out of range.

    References:
        1. Tian, Krishnan, Isola: Contrastive Representation Distillation, ICLR 2020, arXiv 1910.10699, eq. 10 and 18.
        2. github.com/HobbitLong/RepDistiller: weight 0.8 for the sum of both directions, on CIFAR-100.
    """
    check_number('negatives', negatives, 1, whole=True)
    check_number('tau', tau, 0, strict=True)
    check_batch('crd_loss', student, teacher)
    vectors, remedy = 'two batches of vectors (N, D)', 'give embeddings'
    check_shapes(student.ndim == teacher.ndim == 2, 'crd_loss', vectors, student, teacher, remedy)
    check_channels('crd_loss', student, teacher)
    if bank.shape[1:] != student.shape[1:] or (len(labels), len(bank_labels)) != (len(student), len(bank)):
        shapes = ', '.join(str(tuple(x.shape)) for x in (student, bank, labels, bank_labels))
        raise ValueError(f'crd_loss: expected (N, D), (M, D), (N,) and (M,), got {shapes}; give a class for each')
    shift = log(negatives) + 1 / (2 * student.shape[1] * tau**2)  # log(Z n / M)
    positives = (student * teacher).sum(1) / tau - shift
    noise: Any = _Noise.apply(student, bank.detach().to(student.dtype), labels, bank_labels, tau, shift)
    return (softplus(-positives) + negatives * noise).mean()
