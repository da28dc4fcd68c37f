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
    patterns do. A critic without such a bound soon tells without doubt, and then the student gets no gradient.
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
    """Distributions of channel patterns, matched by a trained critic: `kd_plugins.functional.nst_gan_loss`.

    **Experimental**: NST's authors only propose it; no published figure exists to compare with.

    The critic, a :class:`Critic`, is a part of this module: its parameters train in the same step, at the optimiser's
    base learning rate, and are kept like adapters. It is built for the first maps that come. A term has one critic:
    give each stage a term of its own.

    What is logged is the term's weight times what the **critic** loses. At equilibrium the critic cannot tell: 2 log 2
    = 1.386 at weight 1, about where an untrained one starts too. It falls while the critic learns, and rises as the
    student comes nearer to the teacher.

    Args:
        hidden: Units of the critic's hidden layer.

    Raises:
        ValueError: The number is out of range; later, maps of another size come.
    """

    features = 'maps'

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
        # Not a lazy layer: nothing can be asked of its parameters before, not even their number of dimensions.
        if self.critic is None:
            self.critic = Critic(size, self.hidden).to(patterns.device)
        if size != (built := self.critic.hidden.in_features):
            raise ValueError(
                f'NSTGANLoss: its critic was built for maps of {built} positions, got {size}; give each '
                'stage a term of its own, and train at a fixed size'
            )
        return self.critic(patterns)
