"""Neuron selectivity transfer by an adversary."""

from torch import Tensor, nn
from torch.nn.functional import leaky_relu, linear

from kd_plugins.functional import nst_gan_loss
from kd_plugins.functional.checks import check_number
from kd_plugins.losses.base import DistillationLoss
from kd_plugins.registry import MODELS


class Critic(nn.Module):
    """Logits (..., 1) of patterns (..., size), by one hidden layer.

    Each weight matrix is divided by its Frobenius norm, so that no two patterns' logits differ by more than the
    patterns do. A critic without such a bound is soon always right, and then the student gets no gradient.
    """

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(size, hidden)
        self.out = nn.Linear(hidden, 1)

    def forward(self, patterns: Tensor) -> Tensor:
        """Return the logits."""
        hidden, out = (linear_.weight / linear_.weight.norm() for linear_ in (self.hidden, self.out))
        return linear(leaky_relu(linear(patterns, hidden, self.hidden.bias), 0.2), out, self.out.bias)


@MODELS.register_module()
class NSTGANLoss(DistillationLoss):
    """Distributions of channel patterns, matched by a trained critic: :func:`kd_plugins.functional.nst_gan_loss`.

    **Experimental**: NST's authors only propose it; no published figure exists to compare with.

    The critic, a :class:`Critic`, is a part of this module: its parameters are trained in the same step, at the
    optimiser's base learning rate, and saved like an adapter's. It is built for the size of the first maps. A term has
    one critic: give each stage a term of its own.

    The logged value is the term's weight times the **critic's** loss. At equilibrium the critic can only guess, which
    is 2 log 2 = 1.386 at weight 1, about where an untrained one starts too. The value falls while the critic learns,
    and rises as the student gets closer to the teacher.

    Args:
        hidden: Units of the critic's hidden layer.

    Raises:
        ValueError: The number is out of range; in a call, the maps are of another size than the first.

    Example:
        >>> import torch
        >>> from kd_plugins.losses import NSTGANLoss
        >>> loss = NSTGANLoss(hidden=8)
        >>> round(loss(torch.rand(2, 3, 4, 4), torch.rand(2, 5, 4, 4)).item(), 1)  # the critic has learnt nothing yet
        1.4
        >>> [tuple(x.shape) for x in loss.parameters()]
        [(8, 16), (8,), (1, 8), (1,)]
    """

    features = 'maps'
    pools = True

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        check_number('hidden', hidden, 1, whole=True)
        self.hidden = hidden
        self.critic: Critic | None = None

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare maps (B, C, H, W); the channels are free."""
        return nst_gan_loss(student, teacher, self._logits)

    def _logits(self, patterns: Tensor) -> Tensor:
        size = patterns.shape[-1]
        # Not a lazy layer, whose parameters have no shape, nor even a number of dimensions, before the first call.
        if self.critic is None:
            self.critic = Critic(size, self.hidden).to(patterns.device)
        if size != (built := self.critic.hidden.in_features):
            raise ValueError(
                f'NSTGANLoss: its critic was built for maps of {built} positions, got {size}; give each '
                'stage a term of its own, and train at a fixed size'
            )
        return self.critic(patterns)
