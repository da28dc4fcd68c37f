"""Softened logits."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .checks import check_logits, check_number
from .gram import applied, as_float, distillation_loss, float_parts, kept_type, parts


def clear_impossible_(terms: Tensor, probabilities: Tensor) -> Tensor:
    """Set the terms of probability 0 to 0 in place, also those that are infinite or not a number."""
    # ReLU's backward pass does that nine times as fast as masked_fill_(probabilities == 0, 0) on a CPU.
    return torch.ops.aten.threshold_backward.grad_input(terms, probabilities, 0, grad_input=terms)


def expectation(probabilities: Tensor, values: Tensor) -> Tensor:
    """Return the sum of ``p x`` over all elements, in which a value of probability 0 counts as 0 even if infinite.

    Args:
        probabilities: Probabilities p, without gradient.
        values: Values x of the same shape.
    """
    terms = probabilities * values
    clear_impossible_(terms.detach(), probabilities)  # the gradient is 0 there anyway: the graph need not record it
    return terms.sum()


def standardized(logits: Tensor) -> Tensor:
    """Shift and scale each row of logits (..., K) to mean 0 and standard deviation 1, that of a sample of K.

    Classes masked by -inf stay so and are left out of both. A row of equal logits becomes 0, without gradient.
    """
    masked = logits == -torch.inf
    count = logits.shape[-1] - masked.sum(-1, keepdim=True)
    # Around the largest, so that equal logits become exactly 0.
    largest = logits.detach().amax(-1, keepdim=True)
    mean = largest + (logits - largest).masked_fill(masked, 0).sum(-1, keepdim=True) / count
    centred = (logits - mean).masked_fill(masked, 0)
    length = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    scale = (count - 1).to(logits.dtype).sqrt() / length.masked_fill(length == 0, torch.inf)
    return (centred * scale).masked_fill(masked, -torch.inf)


class _Divergence(torch.autograd.Function):
    """:func:`divergence`, whose gradient in s comes from what the value needs anyway."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, tau: float, *masked: Tensor) -> Tensor:
        gradient, divergences = torch.empty_like(student, dtype=kept_type(student.dtype)), []
        for (s, t), (out, *mask) in zip(float_parts(student, teacher), parts(gradient, *masked), strict=True):
            for rows in mask:
                s.masked_fill_(rows, 0), t.masked_fill_(rows, 0)
            own, other = s.mul_(1 / tau).log_softmax(1), t.mul_(1 / tau).log_softmax(1)
            probabilities = torch.exp(other, out=t)
            divergences.append(clear_impossible_(other.sub_(own).mul_(probabilities), probabilities).sum())
            out.copy_(torch.exp(own, out=s).sub_(probabilities).mul_(1 / tau))
        ctx.save_for_backward(student, teacher, gradient, *masked)
        ctx.tau = tau
        return torch.stack(divergences).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, gradient, *masked = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient will have one itself
            own, other = ((as_float(x) / ctx.tau).softmax(1) for x in _cleared((student, teacher), masked))
            gradient = (own - other) / ctx.tau
        return (grad * gradient).to(student.dtype), None, None, *(None for _ in masked)


def _cleared(logits: tuple[Tensor, Tensor], masked: Sequence[Tensor]) -> Iterable[Tensor]:
    """Return the logits of both, 0 where a mask says so."""
    return (x.masked_fill(masked[0], 0) for x in logits) if masked else logits


def _plain_divergence(student: Tensor, teacher: Tensor, tau: float, *masked: Tensor) -> Tensor:
    own, other = ((as_float(x) / tau).log_softmax(1) for x in _cleared((student, teacher), masked))
    probabilities = other.exp()
    return torch.ops.aten.threshold_backward(probabilities * (other - own), probabilities, 0).sum()


def divergence(student: Tensor, teacher: Tensor, tau: float, *masked: Tensor) -> Tensor:
    """Return the sum of ``KL(softmax(t / tau) || softmax(s / tau))``, the softmax along axis 1.

    Rows that are masked wholly, by a mask of size 1 along that axis, add nothing.
    """
    return applied(_Divergence, _plain_divergence, student, teacher, tau, *masked)


@partial(distillation_loss, takes_half=True)
def kd_loss(
    student: Tensor, teacher: Tensor, tau: float = 4.0, standardize: bool = False, use_sigmoid: bool = False
) -> Tensor:
    """Divergence of the student's softened class probabilities from the teacher's.

    ``tau^2 KL(softmax(t / tau) || softmax(s / tau))``, summed over the classes and averaged over everything else. The
    factor tau^2 keeps the size of the gradient when tau changes. An average over the classes too, as
    ``KLDivLoss(reduction='mean')`` takes it, would be K times smaller. A class that the teacher masks by a logit of
    -inf has probability 0 and adds nothing, also where the student masks it.

    With ``standardize``, both networks' logits are standardised over the classes first: ``(z - mean(z)) / std(z)``, std
    being that of a sample. The student then learns how the teacher's logits relate, not their size. Of two classes only
    the order is left, which has no gradient. The authors use it on CIFAR-100 with weight 9 beside a tenth of the
    cross-entropy, at tau 2, or 3 for VGG-13 to VGG-8 and students of MobileNetV2 (from ResNet-50 with weight 1).

    With ``use_sigmoid``, each class is a yes or no of its own, as where an image has several. It adds
    ``p log(p / q) + (1 - p) log((1 - p) / (1 - q))``, of ``p = sigmoid(t / tau)`` and ``q = sigmoid(s / tau)``.

    Args:
        student: Logits s, (N, K) or (N, L, K).
        teacher: Logits t of the same shape; they get no gradient.
        tau: Temperature, above 0.
        standardize: Whether both logits are standardised. A row of equal logits then counts as 0, without gradient.
        use_sigmoid: Whether the probabilities are those of independent classes, not of a softmax.

    Returns:
        Scalar, in nats times tau^2.

    Raises:
        ValueError: The shapes differ, hold nothing, are those of maps, or have one class without ``use_sigmoid``; the
            temperature is not above 0; or logits of
            independent classes would be standardised.

    References:
        1. Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531.
        2. github.com/szagoruyko/attention-transfer (tau 4, weight 0.9).
        3. Sun et al.: Logit Standardization in Knowledge Distillation, CVPR 2024, arXiv 2403.01427.
        4. github.com/sunshangquan/logit-standardization-KD (it adds 1e-7 to the standard deviation).
        5. Yang et al.: Multi-Label Knowledge Distillation, ICCV 2023, arXiv 2308.06453 (with a sigmoid, at tau 1; there
           beside losses of label-wise embeddings).
    """
    check_number('tau', tau, 0, strict=True)
    if standardize and use_sigmoid:
        raise ValueError('kd_loss: standardize=True compares the classes of a softmax: leave it out, or use_sigmoid')
    check_logits('kd_loss', student, teacher, positions=True, independent=use_sigmoid)
    if standardize:
        student, teacher = standardized(as_float(student)), standardized(as_float(teacher))
    student, teacher = (x.flatten(0, -2) for x in (student, teacher))
    if use_sigmoid:  # that of x is the softmax of x and 0
        student, teacher = (torch.stack((x, torch.zeros_like(x)), 1) for x in (student, teacher))
    return divergence(student, teacher, tau) * (tau**2 / len(student))
