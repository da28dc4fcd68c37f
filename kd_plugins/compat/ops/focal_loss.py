"""Focal losses."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from .precision import widen


def _sigmoid_focal_terms(input: Tensor, target: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each logit its sign, +1 for the target class and −1 elsewhere; sign · logit; and its loss's weight."""
    truth = (target[:, None] == torch.arange(input.shape[1], device=input.device)).to(input.dtype)
    sign = 2 * truth - 1
    scale = alpha * truth + (1 - alpha) * (1 - truth)
    if len(weight):
        # The background (target = C) has no entry: its weight is 1.
        scale = scale * pad(weight.to(input.dtype), (0, 1), value=1)[target, None]
    return sign, sign * input, scale


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss of every logit on its own: −a · (1 − q)^gamma · log q.

    For the target class, q = sigmoid(x) and a = alpha; for every other, q = sigmoid(−x) and a = 1 − alpha.

    Args:
        input: Logits x, (N, C).
        target: Classes (N,), 0 … C − 1, or C for the background, for which every class is another.
        weight: Weights (C,) by the target class, or empty.
        output: Written, (N, C).
        gamma: Exponent.
        alpha: Factor of the target class.
    """
    (logits,) = widen(input)
    _, margin, scale = _sigmoid_focal_terms(logits, target, weight, alpha)
    output.copy_(-scale * torch.sigmoid(-margin) ** gamma * logsigmoid(margin))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of :func:`sigmoid_focal_loss_forward` with respect to its logits.

    With q as there: ±a · (1 − q)^gamma · (gamma · q · log q − (1 − q)), + for the target class.
    """
    (logits,) = widen(input)
    sign, margin, scale = _sigmoid_focal_terms(logits, target, weight, alpha)
    wrong = torch.sigmoid(-margin)
    slope = gamma * torch.sigmoid(margin) * logsigmoid(margin) - wrong
    grad_input.copy_(sign * scale * wrong**gamma * slope)


def _softmax_focal_terms(
    softmax: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each row the target's probability, its logarithm, and the weight of the loss (0 where ignored)."""
    known = target >= 0
    label = target.clamp(min=0)
    probability = softmax.gather(1, label[:, None])[:, 0]
    scale = alpha * known.to(softmax.dtype)
    if len(weight):
        scale = scale * weight.to(softmax.dtype)[label]
    return probability, probability.clamp(min=torch.finfo(softmax.dtype).tiny).log(), scale


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss of every row: −alpha · (1 − p)^gamma · log p, p the target's probability.

    Args:
        input: Probabilities (N, C).
        target: Classes (N,), 0 … C − 1; one below 0 has no loss.
        weight: Weights (C,) by the target class, or empty.
        output: Written, (N,).
        gamma: Exponent.
        alpha: Factor.
    """
    (softmax,) = widen(input)
    probability, logarithm, scale = _softmax_focal_terms(softmax, target, weight, alpha)
    output.copy_(-scale * (1 - probability) ** gamma * logarithm)


def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of :func:`softmax_focal_loss_forward` with respect to the logits behind ``input``.

    alpha · (gamma · (1 − p)^(gamma − 1) · p · log p − (1 − p)^gamma) · (1[c = target] − softmax_c).
    ``buff`` (N,) is unused.
    """
    (softmax,) = widen(input)
    probability, logarithm, scale = _softmax_focal_terms(softmax, target, weight, alpha)
    # Above 0, where gamma < 1 would give 0 · infinity.
    wrong = (1 - probability).clamp(min=torch.finfo(softmax.dtype).tiny)
    slope = scale * (gamma * wrong ** (gamma - 1) * probability * logarithm - wrong**gamma)
    hit = target[:, None] == torch.arange(softmax.shape[1], device=softmax.device)
    grad_input.copy_(slope[:, None] * (hit.to(softmax.dtype) - softmax))
