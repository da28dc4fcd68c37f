"""Where channels are active."""

from functools import partial

import torch
from torch import Tensor

from .checks import check_channels, check_maps, check_number
from .gram import by_channel, distillation_loss, laid_out_alike, match_size, transformed
from .kd import divergence


@partial(distillation_loss, takes_half=True)
def cwd_loss(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """Divergence of two distributions over the positions of a map, channel by channel.

    ``tau^2 KL(softmax(t / tau) || softmax(s / tau))``, with the softmax over the H W positions of a channel; summed
    over the positions, averaged over channels and batch. A constant that is added to a channel plays no role. A
    position that the teacher masks by -inf adds nothing, and a channel of which it masks all has no gradient either.

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
    student, teacher = map(by_channel, laid_out_alike(student, teacher))
    masked = teacher.amax(1, keepdim=True) == -torch.inf
    unseen = torch.compiler.is_compiling() or transformed() or not masked.is_cpu  # a GPU would have to be waited for
    mask = [masked] if unseen or masked.any() else []
    return divergence(student, teacher, tau, *mask) * (tau**2 / masked.numel())
