"""Softened logits."""

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from .checks import check_number, check_shapes
from .gram import distillation_loss


@distillation_loss
def kd_loss(student: Tensor, teacher: Tensor, tau: float = 4.0) -> Tensor:
    """Divergence of the student's softened class probabilities from the teacher's.

    ``tau^2 KL(softmax(t / tau) || softmax(s / tau))``, summed over the classes and averaged over everything else. The
    factor tau^2 keeps the size of the gradient when tau changes. An average over the classes too, as
    ``KLDivLoss(reduction='mean')`` takes it, would be K times smaller. A class that the teacher masks by a logit of
    -inf has probability 0 and adds nothing, also where the student masks it.

    Args:
        student: Logits s, (N, K) or (N, L, K).
        teacher: Logits t of the same shape; they get no gradient.
        tau: Temperature, above 0.

    Returns:
        Scalar, in nats times tau^2.

    Raises:
        ValueError: The shapes differ, hold nothing, or are those of maps; or the temperature is not above 0.

    References:
        1. Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531.
        2. github.com/szagoruyko/attention-transfer (tau 4, weight 0.9).
    """
    check_number('tau', tau, 0, strict=True)
    check_shapes(
        student.ndim in (2, 3) and student.shape == teacher.shape and student.numel() > 0,
        'kd_loss',
        'non-empty logits (N, K) or (N, L, K) of the same shape',
        student,
        teacher,
        'give both networks the same images and the same classes',
    )
    student, teacher = (log_softmax(x / tau, -1) for x in (student, teacher))
    divergence = kl_div(student, teacher, reduction='none', log_target=True)
    # 0 log 0 = 0. The gradient is 0 there anyway, so that the graph need not record it.
    divergence.detach().masked_fill_(teacher == -torch.inf, 0)
    return divergence.sum() * (tau**2 * student.shape[-1] / student.numel())
