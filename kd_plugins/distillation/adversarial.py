"""Terms whose loss makes inputs of its own (BSS)."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import get_world_size
from torch import Tensor, nn

from kd_plugins.distillation.recorder import Features
from kd_plugins.distillation.term import Batch, Term, mean_over_teachers
from kd_plugins.errors import UserError
from kd_plugins.losses import AdversarialLoss


class AdversarialTerm(Term):
    """A term whose loss is an :class:`~kd_plugins.losses.AdversarialLoss` (BSS).

    The loss chooses images of the batch and makes inputs from them; both networks run on these, the student in its
    training mode, and the loss compares their logits. The value is 0 where fewer than two images are chosen: BatchNorm
    has no statistics of a single one.

    Under data-parallel, processes may choose different numbers of images. A process that chooses fewer than two
    contributes zeros to the average of the gradients.
    """

    loss: AdversarialLoss

    def forward(self, student: Features, targets: Sequence[Features], batch: Batch) -> Tensor:
        """Return the unweighted loss, a scalar, with one more pass of the student for each teacher.

        Args:
            student: Features at the student's taps for the batch.
            targets: Features at each teacher's taps for the batch.
            batch: The batch; each image has one class.

        Raises:
            UserError: An image has several classes or none, or the student has a SyncBatchNorm.
        """
        if get_world_size() > 1 and any(isinstance(x, nn.SyncBatchNorm) for x in batch.student.model.modules()):
            raise UserError(
                f"term '{self.name}': {type(self.loss).__name__} runs the student on a number of images that differs "
                'between processes, which SyncBatchNorm does not support: remove sync_bn'
            )
        labels = self.labels(batch.data_samples).to(batch.inputs.device)
        return mean_over_teachers([self._attack(index, student, targets, batch, labels) for index in self.teachers])

    def check_samples(self, data_samples: Sequence[Any] | None) -> None:
        """Check that each image has one class.

        Raises:
            UserError: An image has several classes or none.
        """
        self.labels(data_samples)

    def _attack(
        self, index: int, student: Features, targets: Sequence[Features], batch: Batch, labels: Tensor
    ) -> Tensor:
        teacher = batch.teachers[index]
        with self.explain_shape_errors(student, targets):
            (student_logits,), (teacher_logits,) = self.student_levels(student), self.teacher_levels(targets[index])
            chosen = self.loss.choose(student_logits, teacher_logits, labels)
        if len(chosen) < 2:
            # An image that was left out can have infinite logits, times 0 not a number.
            return 0.0 * student_logits.float().nan_to_num(0.0, 0.0, 0.0).sum() + self.zero_loss()
        samples = [batch.data_samples[i] for i in chosen.tolist()]  # type: ignore[index]  # self.labels has checked them

        def logits(inputs: Tensor, indices: Tensor) -> Tensor:
            return self.teacher_levels(teacher.features(inputs, [samples[i] for i in indices.tolist()]))[0]

        try:
            inputs = self.loss.adversaries(batch.inputs[chosen], labels[chosen], teacher_logits[chosen], logits)
        except ValueError as error:  # options of the loss that do not match the images
            raise UserError(f"term '{self.name}': {error}") from error
        with torch.no_grad():
            target = teacher.features(inputs, samples)
        with batch.student.recording() as features:
            batch.student.model(inputs, samples, mode='tensor')
        return self.against(index, features, target, batch)
