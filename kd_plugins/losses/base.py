"""The protocol of a loss: what its class declares to the term that calls it."""

from collections.abc import Callable
from typing import ClassVar, Literal

from torch import Tensor, nn


class DistillationLoss(nn.Module):
    """A loss of two features, ``loss(student, teacher) -> scalar``.

    A :class:`~kd_plugins.distillation.term.Term` reads these class attributes. A subclass overrides those that differ::

        @MODELS.register_module()
        class MyRelationalLoss(DistillationLoss):
            batch_relational = True

            def forward(self, student: Tensor, teacher: Tensor) -> Tensor: ...

    Any other ``nn.Module`` that takes two tensors and returns a scalar (``torch.nn.MSELoss``) is a loss too; the values
    below apply to it. A loss from outside of this package gets contiguous tensors, so that it may view them in other
    shapes; those of this package get them as the networks lay them out in memory.

    Attributes:
        features: Kind of the two features: ``'maps'`` (B, C, H, W); ``'positions'``, two maps, two sequences of tokens
            (B, N, C) of one length or two vectors (B, C), compared position by position; ``'logits'`` (B, K);
            ``'embeddings'`` (B, ...), one for each image; ``'heads'``, two heads of dense detectors, which a term of
            its own parts; or ``'any'``, where (B, ...) need not mean images. A term turns tokens into maps for the
            first, and for the second where the two networks' are unlike.
        batch_relational: Whether the loss compares the images of a batch with each other. Under data-parallel it then
            gets the features, and labels, of the global batch, gathered with gradient, so that its value does not
            depend on the number of processes. A loss to which sums are enough exchanges these itself, as PKDLoss.
        pools: Whether ``forward`` average-pools two maps to the smaller height and width before all else, so that a
            teacher's cache may keep them pooled. A term does not do it for the loss, but by its ``resize``.
        over_positions: Whether the loss divides a map by its norm or sum over the positions, so that maps of one
            position are all alike to it, and give no gradient.
        takes_pairs: Whether ``student`` and ``teacher`` are pairs of features, the input and the output of a stage.
        needs_labels: Whether the loss is called as ``loss(student, teacher, labels)`` with the classes (B,).
        needs_indices: Whether the loss is called with ``indices=`` (B,), the index of each image in the training set,
            from 0 to ``num_samples - 1``.
        num_samples: Number of images of the training set, where the loss needs indices and knows it yet.
        per_level: Whether the loss has parameters, or other state, that belong to one level. A term then uses a copy of
            it for each level and teacher.
    """

    features: ClassVar[Literal['maps', 'positions', 'logits', 'embeddings', 'heads', 'any']] = 'any'
    batch_relational: ClassVar[bool] = False
    pools: ClassVar[bool] = False
    over_positions: ClassVar[bool] = False
    takes_pairs: ClassVar[bool] = False
    needs_labels: bool = False
    needs_indices: ClassVar[bool] = False
    num_samples: int | None = None
    per_level: ClassVar[bool] = False

    def set_num_samples(self, num_samples: int) -> None:
        """Receive the number of images of the training set, before the first step."""
        self.num_samples = num_samples


class AdversarialLoss(DistillationLoss):
    """A loss of the logits on inputs that it makes from those of the batch.

    Its term is an :class:`~kd_plugins.distillation.adversarial.AdversarialTerm`, which runs both networks on them.
    """

    features = 'logits'

    def choose(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Choose images of the batch.

        Args:
            student: Logits (N, K).
            teacher: Logits (N, K).
            labels: Classes (N,).

        Returns:
            Indices (M,) of the images to start from.
        """
        raise NotImplementedError

    def adversaries(
        self, inputs: Tensor, labels: Tensor, logits: Tensor, teacher: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Make inputs from the chosen images.

        Args:
            inputs: Images (M, C, H, W) as the student's preprocessor returns them.
            labels: Classes (M,).
            logits: Logits (M, K) of the teacher.
            teacher: Returns the teacher's logits (m, K) for inputs (m, C, H, W) made from the images with the indices
                (m,) among the M; they can be differentiated in the inputs.

        Returns:
            Inputs (M, C, H, W).
        """
        raise NotImplementedError
