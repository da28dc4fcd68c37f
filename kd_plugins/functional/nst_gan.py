"""Neuron selectivity transfer by an adversary."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .checks import check_maps
from .gram import distillation_loss, match_size, unit


class _Reverse(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


def patterns(maps: Tensor) -> Tensor:
    """Return (B, C, H W) of maps (B, C, H, W): each channel scaled to mean square 1, i.e. to L2 norm sqrt(H W)."""
    maps = maps.flatten(2)
    return unit(maps) * maps.shape[2] ** 0.5


@distillation_loss
def nst_gan_loss(student: Tensor, teacher: Tensor, critic: Callable[[Tensor], Tensor]) -> Tensor:
    """Loss of a critic that discriminates the teacher's channel patterns from the student's.

    Each channel's map f in R^{HW}, scaled to one length as in NST, is a sample; with c the critic's logit for
    *teacher*, ``mean log(1 + exp(-c(f_T))) + mean log(1 + exp(c(f_S)))`` over batch and channels. The critic gets this
    value's gradient, the student its **reverse**: one descent trains the critic to discriminate and the student to be
    mistaken for the teacher.

    Args:
        student: Maps (B, C_S, H_S, W_S).
        teacher: Maps (B, C_T, H_T, W_T); they get no gradient. Where the sizes differ, both are average-pooled to the
            smaller height and width.
        critic: Function of patterns (..., H W) that returns logits (..., 1).

    Returns:
        Scalar, in nats, at least 0: 2 log 2 = 1.386 for a critic that only guesses, near 0 for one that is always
        right. The student's gradient is not that of this number, but its reverse.

    Raises:
        ValueError: Not two maps, or a different batch.

    References:
        1. Huang, Wang: Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017, arXiv 1707.01219,
           which names a GAN as future work, without an experiment.
        2. Ganin et al.: Domain-Adversarial Training of Neural Networks, JMLR 2016, arXiv 1505.07818 (the reversal).
    """
    check_maps('nst_gan_loss', student, teacher)
    student, teacher = (patterns(x) for x in match_size(student, teacher))
    return softplus(-critic(teacher)).mean() + softplus(critic(_Reverse.apply(student))).mean()
