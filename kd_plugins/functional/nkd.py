"""Softened logits of the classes other than the label, normalised."""

from torch import Tensor

from .checks import check_labels, check_logits, check_number
from .dkd import other_classes
from .gram import distillation_loss
from .kd import expectation


@distillation_loss
def nkd_loss(student: Tensor, teacher: Tensor, labels: Tensor, gamma: float = 1.5, tau: float = 1.0) -> Tensor:
    """Cross-entropy with the teacher's probabilities of the labels and, apart, of the other classes.

    ``-p_T,y log p_S,y - gamma tau^2 sum_{k != y} q_T,k log q_S,k``, averaged over the batch. With y the label, p is the
    softmax of the logits, at temperature 1, and q that over the classes other than y, at tau. Being a cross-entropy and
    no divergence, it is not 0 for equal logits. Of two classes, q has one, and its part is 0.

    The authors add it with weight 1 to the whole cross-entropy. For ResNet-34 to ResNet-18, gamma is 1.5 at tau 1 on
    ImageNet and 3.5 at tau 3 on CIFAR-100.

    Args:
        student: Logits s, (N, K), of two classes or more.
        teacher: Logits t of the same shape; they get no gradient. A class masked by -inf adds nothing.
        labels: Classes y, (N,), of type int64.
        gamma: Weight of the part of the other classes, from 0.
        tau: Temperature of that part, above 0.

    Returns:
        Scalar, in nats, those of the other classes times tau^2.

    Raises:
        ValueError: The shapes differ, are not those of logits, or hold nothing; a label is none of the classes; a
            number is out of range.

    References:
        1. Yang et al.: From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
           Loss and Customized Soft Labels, ICCV 2023, arXiv 2303.13005.
        2. github.com/yzd-v/cls_KD.
    """
    check_number('gamma', gamma, 0)
    check_number('tau', tau, 0, strict=True)
    check_logits('nkd_loss', student, teacher)
    check_labels('nkd_loss', student, labels)
    index = labels[:, None]
    of_labels = expectation(teacher.softmax(1).gather(1, index), student.log_softmax(1).gather(1, index))
    student, teacher = (other_classes(x / tau, labels) for x in (student, teacher))
    of_others = expectation(teacher.softmax(1).scatter_(1, index, 0), student.log_softmax(1))
    return (of_labels + gamma * tau**2 * of_others) / -len(student)
