"""A term that makes its own inputs."""

from collections.abc import Sequence

import torch
from mmengine.dist import get_world_size
from torch import Tensor, nn

from kd_plugins.distillation.recorder import Features
from kd_plugins.distillation.term import Batch, Term, mean_over_teachers
from kd_plugins.errors import UserError


class AdversarialTerm(Term):
    """A term whose loss is an :class:`~kd_plugins.losses.AdversarialLoss` (BSS).

    The loss chooses images of the batch and makes inputs from them; both networks run on these, the student in its
    training mode, and the loss compares their logits there. The value is 0 where fewer than two images are chosen: of
    one, a BatchNorm has no statistics.

    Under data-parallel processes may choose different numbers of images. Gradients are averaged over processes after
    the backward pass, in which a process with fewer than two takes part with zeros.
    """

    def forward(self, student: Features, targets: Sequence[Features], batch: Batch) -> Tensor:
        """Return the unweighted loss, a scalar, with one more pass of the student for each teacher.

        Args:
            student: Output of the student's taps for the batch.
            targets: That of each teacher's taps.
            batch: The batch, with images of one class each.

        Raises:
            UserError: The images have several classes or none, or the student has a SyncBatchNorm.
        """
        if get_world_size() > 1 and any(isinstance(x, nn.SyncBatchNorm) for x in batch.student.model.modules()):
            raise UserError(
                f"term '{self.name}': {type(self.loss).__name__} runs the student on as many images as a process has "
                'chosen, which SyncBatchNorm cannot: leave sync_bn out'
            )
        labels = self.labels(batch.data_samples).to(batch.inputs.device)
        return mean_over_teachers([self._attack(index, student, targets, batch, labels) for index in self.teachers])

    def _attack(
        self, index: int, student: Features, targets: Sequence[Features], batch: Batch, labels: Tensor
    ) -> Tensor:
        teacher = batch.teachers[index]
        with self.explain_shape_errors(student, targets):
            (own,), (other,) = self.of_student(student), self.of_teacher(targets[index])
            chosen = self.loss.choose(own, other, labels)
        if len(chosen) < 2:
            return 0.0 * own.float().sum() + self.zero_loss()
        samples = [batch.data_samples[i] for i in chosen.tolist()]

        def logits(inputs: Tensor, indices: Tensor) -> Tensor:
            return self.of_teacher(teacher.answer(inputs, [samples[i] for i in indices.tolist()]))[0]

        try:
            made = self.loss.adversaries(batch.inputs[chosen], labels[chosen], other[chosen], logits)
        except ValueError as error:  # of the loss's options, which the images do not fit
            raise UserError(f"term '{self.name}': {error}") from error
        with torch.no_grad():
            target = teacher.answer(made, samples)
        with batch.student.recording() as found:
            batch.student.model(made, samples, mode='tensor')
        return self.against(index, found, target)
