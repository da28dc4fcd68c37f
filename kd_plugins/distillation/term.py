"""A term of the distillation loss: taps, adapter, loss and weight."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kd_plugins.distillation.adapters import auto_adapter
from kd_plugins.distillation.recorder import Features, Recorder
from kd_plugins.distillation.schedule import Schedule
from kd_plugins.distillation.teacher import Teacher
from kd_plugins.errors import UserError
from kd_plugins.losses import AdversarialLoss, DistillationLoss
from kd_plugins.registry import build_part, check_arguments
from kd_plugins.utils.distributed import gathered


class Batch(NamedTuple):
    """A training batch, and the networks that a term may run on other inputs.

    Attributes:
        inputs: Images (B, C, H, W) as the student's preprocessor returned them.
        data_samples: Annotations of the images.
        student: Recorder of the student's taps, with the student as its ``model``.
        teachers: The teachers.
    """

    inputs: Tensor
    data_samples: Sequence[Any] | None
    student: Recorder
    teachers: Sequence[Teacher]


class Term(nn.Module):
    """A term of the distillation loss: ``weight(t) * loss(adapter(student tap), teacher tap)``.

    Several taps, or a tap with several levels, are matched in order and their losses summed. Losses against several
    teachers are averaged; with :class:`~kd_plugins.losses.KDLoss`, the mean has the gradient of the divergence from the
    teachers' mean probabilities. The class of the loss declares what it needs besides the two features, see
    :class:`~kd_plugins.losses.DistillationLoss`.

    Args:
        name: Name of the term; the log shows its loss as ``loss_<name>``.
        loss: Loss module, or its config dict.
        student: Tap of the student, or a list of taps.
        teacher: Tap of the teacher, or a list of as many.
        weight: Weight of the loss: a number, or the config dict of a
            :class:`~kd_plugins.distillation.schedule.Schedule`.
        adapter: ``None``; ``'auto'``, a trainable 1x1 convolution (a linear layer for vectors) from the student's
            channels to the teacher's; or the config dict of a module, built once for each level and teacher.
        teachers: Indices, from 0, of the teachers to learn from, where there are several. ``None`` means all.

    Raises:
        UserError: An option has an invalid value.
    """

    def __init__(
        self,
        name: str,
        loss: Mapping[str, Any] | nn.Module,
        student: str | Sequence[str],
        teacher: str | Sequence[str],
        weight: float | Mapping[str, Any] = 1.0,
        adapter: str | Mapping[str, Any] | None = None,
        teachers: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(name, str) or not name:
            raise UserError(f'the name of a term must be a string that is not empty, got {name!r}')
        self.name = name
        self.loss = build_part(f"the loss of term '{name}'", loss)
        marks = [x for x in ('batch_relational', 'takes_pairs', 'needs_labels', 'adversaries') if hasattr(self.loss, x)]
        if marks and not isinstance(self.loss, DistillationLoss):  # version 0.1 read them from any module
            raise UserError(
                f"term '{name}': {type(self.loss).__name__} has {', '.join(marks)}, which counts only in a subclass of "
                'kd_plugins.losses.DistillationLoss, or of AdversarialLoss for adversaries: derive it from that'
            )
        self.student_taps, self.teacher_taps = self._taps('student', student), self._taps('teacher', teacher)
        if isinstance(weight, Mapping):
            check_arguments(f"the weight of term '{name}'", Schedule, weight)
            self.weight: float | Schedule = Schedule(**weight)
        elif isinstance(weight, (int, float)):
            self.weight = weight
        else:
            raise UserError(
                f"the weight of term '{name}' must be a number or dict(at=[...], value=[...]), got {weight!r}"
            )
        values = self.weight.value if isinstance(self.weight, Schedule) else [self.weight]
        if not all(isfinite(x) and x >= 0 for x in values):
            raise UserError(f"the weight of term '{name}' must be finite and not below 0, got {weight!r}")
        if isinstance(adapter, str) and adapter != 'auto':
            raise UserError(f"the adapter of term '{name}' must be None, 'auto' or a config dict, got '{adapter}'")
        self._adapter = adapter
        self.adapters = nn.ModuleList()
        self._chosen = teachers
        self.teachers: Sequence[int] = ()

    @property
    def _declared(self) -> DistillationLoss | type[DistillationLoss]:
        return self.loss if isinstance(self.loss, DistillationLoss) else DistillationLoss

    def _taps(self, side: str, taps: Any) -> list[str]:
        names = [taps] if isinstance(taps, str) else taps
        if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
            raise UserError(
                f"term '{self.name}': {side} must be the name of a module or a list of such names, got {taps!r}"
            )
        return list(names)

    def choose_teachers(self, count: int) -> None:
        """Resolve and check the indices of the term's ``teachers``, among ``count`` of them.

        Raises:
            UserError: An index is out of range or repeated.
        """
        chosen = range(count) if self._chosen is None else self._chosen
        valid = isinstance(chosen, Sequence) and all(isinstance(x, int) and x in range(count) for x in chosen)
        if not valid or not chosen or len(set(chosen)) < len(chosen):
            raise UserError(
                f"term '{self.name}': teachers must list indices of teachers, each once, from 0 to {count - 1}, "
                f'got {chosen!r}'
            )
        self.teachers = chosen

    def current_weight(self) -> float:
        """Return the weight at this point of training."""
        return self.weight() if isinstance(self.weight, Schedule) else float(self.weight)

    def is_ever_active(self) -> bool:
        """Return whether the weight is above 0 at any point of training."""
        return any(self.weight.value) if isinstance(self.weight, Schedule) else self.weight != 0

    def prepare(self, student: Features, targets: Sequence[Features]) -> str:
        """Build the adapters for the shapes of a dry run, try the loss on them, and describe the term in a line.

        Raises:
            UserError: The shapes do not match, or the loss does not take them.
        """
        levels = self.student_levels(student)
        if self._adapter is not None:
            for index in self.teachers:
                for s, t in zip(*self._levels(student, targets[index]), strict=True):
                    self.adapters.append(
                        auto_adapter(s, t)
                        if isinstance(self._adapter, str)
                        else build_part(f"the adapter of term '{self.name}'", copy.deepcopy(self._adapter))
                    )
        self.to(levels[0].device)
        labels = None
        if self._declared.needs_labels:
            labels = torch.zeros(len(levels[0]), dtype=torch.long, device=levels[0].device)
        self.compare(student, targets, labels)
        return self.describe(student, targets)

    def student_levels(self, features: Features) -> list[Tensor]:
        """Return all levels of the student's taps, in order."""
        return [x for tap in self.student_taps for x in features[tap]]

    def teacher_levels(self, features: Features) -> list[Tensor]:
        """Return all levels of a teacher's taps, in order."""
        return [x for tap in self.teacher_taps for x in features[tap]]

    def describe(self, student: Features, targets: Sequence[Features]) -> str:
        """Return a line with the taps, the shapes of their features, and the numbers of trained parameters."""

        def side(taps: list[str], levels: list[Tensor]) -> str:
            return f'{"+".join(taps)} {" ".join(str(tuple(x.shape)) for x in levels)}'

        teachers = [
            f'teacher{f" {index}" if len(targets) > 1 else ""} '
            f'{side(self.teacher_taps, self.teacher_levels(targets[index]))}'
            for index in self.teachers
        ]
        sizes = {
            name: sum(p.numel() for p in module.parameters())
            for name, module in (('adapter', self.adapters), ('loss', self.loss))
        }
        trained = ''.join(f', {name} of {size:,} parameters' for name, size in sizes.items() if size)
        return (
            f'{self.name}: {type(self.loss).__name__} student '
            f'{side(self.student_taps, self.student_levels(student))} -> {", ".join(teachers)}{trained}'
        )

    def forward(self, student: Features, targets: Sequence[Features], batch: Batch) -> Tensor:
        """Return the unweighted loss, a scalar.

        Args:
            student: Features at the student's taps for the batch.
            targets: Features at each teacher's taps for the batch.
            batch: The batch.

        Raises:
            UserError: The loss does not take the shapes, or needs labels that the batch does not have.
        """
        labels = self.labels(batch.data_samples) if self._declared.needs_labels else None
        return self.compare(student, targets, labels)

    def compare(self, student: Features, targets: Sequence[Features], labels: Tensor | None = None) -> Tensor:
        """Return the unweighted loss, the mean over the teachers."""
        with self.explain_shape_errors(student, targets):
            return mean_over_teachers([self.against(x, student, targets[x], labels) for x in self.teachers])

    def against(self, index: int, student: Features, target: Features, labels: Tensor | None = None) -> Tensor:
        """Return the unweighted loss against the teacher with this index.

        Raises:
            UserError: The numbers of levels do not match or do not suit the loss, or the loss is no scalar.
        """
        levels, targets = self._levels(student, target)
        if self.adapters:
            start = list(self.teachers).index(index) * len(levels)
            adapters = self.adapters[start : start + len(levels)]
            levels = [adapter(level) for adapter, level in zip(adapters, levels, strict=True)]
        if self._declared.batch_relational:
            levels, targets = [gathered(x) for x in levels], [gathered(x) for x in targets]
            labels = None if labels is None else gathered(labels)
        pairs = [(levels, targets)] if self._declared.takes_pairs else list(zip(levels, targets, strict=True))
        losses = [self.loss(s, t) if labels is None else self.loss(s, t, labels) for s, t in pairs]
        for loss in losses:
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise UserError(
                    f"term '{self.name}': {type(self.loss).__name__} must return a scalar, got "
                    f'{tuple(loss.shape) if isinstance(loss, Tensor) else loss!r}: a mean or a sum'
                )
        return sum(losses)

    def _levels(self, student: Features, target: Features) -> tuple[list[Tensor], list[Tensor]]:
        levels, targets = self.student_levels(student), self.teacher_levels(target)
        if len(levels) != len(targets):
            raise UserError(
                f"term '{self.name}': the student's taps give {len(levels)} feature(s), the teacher's "
                f'{len(targets)}: give both the same number'
            )
        kind = type(self.loss).__name__
        if isinstance(self.loss, AdversarialLoss) and len(levels) != 1:
            raise UserError(
                f"term '{self.name}': {kind} takes one feature per network, its logits, got {len(levels)}: give one tap"
            )
        if self._declared.takes_pairs and len(levels) != 2:
            raise UserError(
                f"term '{self.name}': {kind} takes two features per network (the input and the output of a stage), got "
                f'{len(levels)}: give a list of two taps'
            )
        return levels, targets

    def labels(self, data_samples: Sequence[Any] | None) -> Tensor:
        """Return the class labels (N,) of the images.

        Raises:
            UserError: An image has no label, several, or soft ones.
        """
        labels = []
        for sample in [None] if data_samples is None else data_samples:
            label, mixed = getattr(sample, 'gt_label', None), getattr(sample, 'gt_score', None) is not None
            if mixed or not isinstance(label, Tensor) or label.numel() != 1:
                raise UserError(
                    f"term '{self.name}': {type(self.loss).__name__} needs images of one class each, a gt_label of one "
                    f'number in each data sample, got {"a gt_score" if mixed else label}: use it for single-label '
                    'classification, without mixing images'
                )
            labels.append(label.flatten())
        return torch.cat(labels)

    @contextmanager
    def explain_shape_errors(self, student: Features, targets: Sequence[Features]) -> Iterator[None]:
        """Turn an error of a loss or an adapter inside the block into one that names the shapes of both sides.

        Raises:
            UserError: A loss or an adapter has raised ValueError or RuntimeError.
        """
        try:
            yield
        except (UserError, torch.OutOfMemoryError):
            raise
        except (ValueError, RuntimeError) as error:
            reason = ' '.join(str(error).split())
            raise UserError(f'{self.describe(student, targets)}: shape mismatch: {reason}') from error

    def zero_loss(self) -> Tensor | float:
        """Return 0, with a gradient of 0 for the term's parameters, so that data-parallel finds none unused."""
        return sum(0.0 * p.sum() for p in self.parameters())


def mean_over_teachers(losses: list[Tensor]) -> Tensor:
    """Return the mean over the teachers; for one teacher, its loss itself."""
    return losses[0] if len(losses) == 1 else torch.stack(losses).mean()
