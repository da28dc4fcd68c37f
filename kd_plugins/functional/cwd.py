"""Where channels are active."""

import torch
from torch import Tensor

from .checks import check_channels, check_maps, check_number
from .gram import distillation_loss, match_size, with_gradient
from .kd import expectation


@distillation_loss
def cwd_loss(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """Divergence of two distributions over the positions of a map, channel by channel.

    ``tau^2 KL(softmax(t / tau) || softmax(s / tau))``, with the softmax over the H W positions of a channel; summed
    over the positions, averaged over channels and batch. A constant that is added to a channel plays no role. A
    position that the teacher masks by -inf adds nothing.

    Args:
        student: Maps s (B, C, H, W), features or class logits.
        teacher: Maps t with the same B and C; they get no gradient. Where the maps differ in size, both are
            average-pooled to the smaller height and width.
        tau: Temperature, above 0.

    Returns:
        Scalar, in nats times tau^2.

    Raises:
        ValueError: Not maps, another batch or channel count, or the temperature is not above 0.

    References:
        1. Shu et al.: Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021, arXiv 2011.13256.
        2. irfanICMLL/TorchDistiller, ``SemSeg-distill/utils/criterion.py``.
        3. open-mmlab/mmrazor, ``mmrazor/models/losses/cwd.py``.
    """
    check_number('tau', tau, 0, strict=True)
    check_maps('cwd_loss', student, teacher)
    check_channels('cwd_loss', student, teacher)
    student, teacher = match_size(student, teacher)
    with torch.no_grad():
        axis = 2 if student.is_contiguous() else 1  # of the positions, as channels-last maps lie in memory
        s, t = (x / tau if axis == 2 else (x / tau).movedim(1, -1) for x in (student, teacher))
        s, t = (x.flatten(axis, axis + 1).log_softmax(axis) for x in (s, t))
        probabilities, scale = t.exp(), tau**2 / (student.shape[0] * student.shape[1])
        value = expectation(probabilities, t.sub_(s)) * scale
        gradient = s.exp_().sub_(probabilities).mul_(scale / tau).unflatten(axis, student.shape[2:])
    return with_gradient(student, value, gradient if axis == 2 else gradient.movedim(-1, 1))
