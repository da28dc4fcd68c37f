"""Boundary supporting samples."""

from collections.abc import Callable, Sequence

from torch import Tensor

from kd_plugins.functional import base_samples, boundary_attack, bss_loss, draw_targets
from kd_plugins.functional.bss import check_attack
from kd_plugins.functional.checks import check_number
from kd_plugins.losses.base import AdversarialLoss
from kd_plugins.registry import MODELS


@MODELS.register_module()
class BSSLoss(AdversarialLoss):
    """Divergence on samples led to the teacher's decision boundary: `kd_plugins.functional.bss_loss`, without tau^2.

    It makes its own inputs: a term with this loss attacks images of the batch, runs both networks on them, the student
    in its training mode, and compares there, at the term's taps, which yield logits. It needs images of one class each.
    The images are changed as the student's preprocessor returned them, i.e. normalised. Under data-parallel each
    process attacks its own batch, and the mean is over its own samples.

    Args:
        tau: Temperature, above 0.
        attack_size: How many images of a batch are attacked at most.
        steps: Of the attack, at most.
        step_size: Share of the margin between two logits that a step goes.
        clamp: No entry of an attacked image leaves [-clamp, clamp].
        scale: Unit of step and clamp in units of the normalised images, one or one a channel. The authors' 0.3 and 2.5
            are for standard deviations of 51.6, 50.8 and 51.3 (of 255): ``scale`` is these over the student's.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        tau: float = 3.0,
        attack_size: int = 64,
        steps: int = 10,
        step_size: float = 0.3,
        clamp: float = 2.5,
        scale: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__()
        check_number('tau', tau, 0, strict=True)
        check_number('attack_size', attack_size, 1, whole=True)
        check_attack(steps, step_size, clamp, scale)
        self.tau = tau
        self.attack_size = attack_size
        self.steps = steps
        self.step_size = step_size
        self.clamp = clamp
        self.scale = scale

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare logits (M, K)."""
        return bss_loss(student, teacher, self.tau)

    def choose(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """return the indices of the images to attack, by the logits (N, K) of the batch."""
        return base_samples(student, teacher, labels, self.attack_size)

    def adversaries(
        self, inputs: Tensor, labels: Tensor, logits: Tensor, teacher: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Return the chosen inputs, led to classes drawn by the teacher's logits on them."""
        targets = draw_targets(logits, labels)
        return boundary_attack(inputs, labels, targets, teacher, self.steps, self.step_size, self.clamp, self.scale)
