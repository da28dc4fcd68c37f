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
    """Divergence at the teacher's decision boundary, without tau^2: :func:`kd_plugins.functional.bss_loss`.

    The loss makes its own inputs. A term with it attacks images of the batch, runs both networks on them, the student
    in its training mode, and compares the logits at the term's taps. The images need one class each, and are changed
    as the student's preprocessor returned them, i.e. normalised. Under data-parallel each process attacks images of
    its own batch, and averages over these.

    Args:
        tau: Temperature, above 0.
        attack_size: Largest number of images of a batch that are attacked.
        steps: Largest number of steps of the attack.
        step_size: Length of a step as a share of the margin between two logits.
        clamp: Largest absolute value in an attacked image.
        scale: Unit of step and clamp in units of the normalised images; one number, or one for each channel. The
            authors' 0.3 and 2.5 are for standard deviations of 51.6, 50.8 and 51.3 (of 255): ``scale`` is these divided
            by the student's.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> import torch
        >>> from kd_plugins.losses import BSSLoss
        >>> loss, logits = BSSLoss(), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> loss.choose(logits, logits, torch.tensor([0, 0]))  # both networks take the second image for class 1
        tensor([0])
        >>> images, labels = torch.tensor([[2.0, 0.0]]), torch.tensor([0])  # for a teacher that returns its input
        >>> loss.adversaries(images, labels, images, lambda x, indices: x).round(decimals=1)
        tensor([[1., 1.]])
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
        """Return the indices of the images to attack, by the logits (N, K) of the batch."""
        return base_samples(student, teacher, labels, self.attack_size)

    def adversaries(
        self, inputs: Tensor, labels: Tensor, logits: Tensor, teacher: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Return the chosen inputs, moved towards classes that are drawn by the teacher's logits on them."""
        targets = draw_targets(logits, labels)
        return boundary_attack(inputs, labels, targets, teacher, self.steps, self.step_size, self.clamp, self.scale)
