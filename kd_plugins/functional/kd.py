"""Softened logits."""

from torch import Tensor

from .checks import check_logits, check_number
from .gram import distillation_loss


def expectation(probabilities: Tensor, values: Tensor) -> Tensor:
    """Return the sum of ``p x`` over all elements, in which a value of probability 0 counts as 0 even if infinite.

    Args:
        probabilities: Probabilities p, without gradient.
        values: Values x of the same shape.
    """
    terms = probabilities * values
    # The gradient is 0 there anyway, so that the graph need not record it.
    terms.detach().masked_fill_(probabilities == 0, 0)
    return terms.sum()


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
    check_logits('kd_loss', student, teacher, positions=True)
    student, teacher = ((x / tau).log_softmax(-1) for x in (student, teacher))
    return expectation(teacher.exp(), teacher - student) * (tau**2 * student.shape[-1] / student.numel())
