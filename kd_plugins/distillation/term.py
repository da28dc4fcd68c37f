"""One summand of the distillation loss: taps, adapter, loss and weight."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from kd_plugins.distillation.adapters import auto_adapter
from kd_plugins.distillation.recorder import Features
from kd_plugins.distillation.schedule import Schedule
from kd_plugins.errors import UserError
from kd_plugins.registry import build_part, checked_arguments
from kd_plugins.utils.distributed import gathered


class Term(nn.Module):
    """One summand of the distillation loss: ``weight(t) * loss(adapter(student tap), teacher tap)``.

    Several taps, or a tap with several levels, are matched in order and their losses summed; over several teachers the
    mean is taken. With :class:`~kd_plugins.losses.KDLoss`, that has the gradient of the divergence from the teachers'
    mean probability. A loss whose class says ``takes_pairs`` (FSP) gets its two taps together; one that has
    ``adversaries`` (BSS) compares on inputs of its own making.

    Args:
        name: The loss appears in the log as ``loss_<name>``.
        loss: Loss module or its record.
        student: Tap of the student, or a list of taps.
        teacher: Tap of the teacher, or a list of as many.
        weight: A number, or the record of a :class:`~kd_plugins.distillation.schedule.Schedule`.
        adapter: ``None``; ``'auto'``, a trainable 1x1 convolution (a linear layer for vectors) from the student's
            channels to the teacher's; or the record of a module, built once a level (and a teacher).
        of: Of several teachers, those that have this tap: their places in the list, from 0. ``None`` for all.
    """

    def __init__(
        self,
        name: str,
        loss: Mapping[str, Any] | nn.Module,
        student: str | Sequence[str],
        teacher: str | Sequence[str],
        weight: float | Mapping[str, Any] = 1.0,
        adapter: str | Mapping[str, Any] | None = None,
        of: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(name, str) or not name:
            raise UserError(f'the name of a term must be a text, got {name!r}')
        self.name = name
        self.loss = build_part(f"the loss of term '{name}'", loss)
        self.student_taps, self.teacher_taps = self._taps('student', student), self._taps('teacher', teacher)
        if isinstance(weight, Mapping):
            checked_arguments(f"the weight of term '{name}'", Schedule, weight)
            weight = Schedule(**weight)
        elif not isinstance(weight, (int, float)):
            raise UserError(
                f"the weight of term '{name}' must be a number or dict(at=[...], value=[...]), got {weight!r}"
            )
        if not all(isfinite(x) and x >= 0 for x in (weight.value if isinstance(weight, Schedule) else [weight])):
            raise UserError(
                f"the weight of term '{name}' must be finite and not below 0, got "
                f'{weight.value if isinstance(weight, Schedule) else weight}'
            )
        self.weight = weight
        if isinstance(adapter, str) and adapter != 'auto':
            raise UserError(f"the adapter of term '{name}' must be None, 'auto' or a module record, got '{adapter}'")
        self._adapter = adapter
        self.adapters = nn.ModuleList()
        self.of = of

    def _taps(self, side: str, taps: Any) -> list[str]:
        found = [taps] if isinstance(taps, str) else taps
        if not isinstance(found, Sequence) or not found or not all(isinstance(tap, str) for tap in found):
            raise UserError(
                f"term '{self.name}': {side} must be the name of a module or a list of such names, got {taps!r}"
            )
        return list(found)

    def choose_teachers(self, count: int) -> None:
        """Settle which of so many teachers the term has."""
        if self.of is None:
            self.of = range(count)
        known = isinstance(self.of, Sequence) and all(x in range(count) for x in self.of)
        if not known or not self.of or len(set(self.of)) < len(self.of):
            raise UserError(
                f"term '{self.name}': of must list places of teachers, each once, from 0 to {count - 1}, "
                f'got {self.of!r}'
            )

    def current_weight(self) -> float:
        """Return the weight at this point of training."""
        return self.weight() if isinstance(self.weight, Schedule) else float(self.weight)

    def may_weigh(self) -> bool:
        """Return whether the weight is, or may come to be, another than 0."""
        return any(self.weight.value) if isinstance(self.weight, Schedule) else self.weight != 0

    def build_adapters(self, student: Features, targets: Sequence[Features]) -> None:
        """Create the adapters, for the shapes seen in a dry run."""
        if self._adapter is None:
            return
        for number in self.of:
            for s, t in zip(self.of_student(student), self.of_teacher(targets[number]), strict=True):
                self.adapters.append(
                    auto_adapter(s, t)
                    if self._adapter == 'auto'
                    else build_part(f"the adapter of term '{self.name}'", copy.deepcopy(self._adapter))
                )

    def of_student(self, features: Features) -> list[Tensor]:
        """Return all levels of the student's taps, in order."""
        return [x for tap in self.student_taps for x in features[tap]]

    def of_teacher(self, features: Features) -> list[Tensor]:
        """Return all levels of a teacher's taps, in order."""
        return [x for tap in self.teacher_taps for x in features[tap]]

    def describe(self, student: Features, targets: Sequence[Features]) -> str:
        """Say what meets what, in one line."""

        def side(taps: list[str], levels: list[Tensor]) -> str:
            return f'{"+".join(taps)} {" ".join(str(tuple(x.shape)) for x in levels)}'

        names = [f'teacher {number}' for number in self.of] if len(targets) > 1 else ['teacher']
        theirs = [
            f'{name} {side(self.teacher_taps, self.of_teacher(targets[number]))}'
            for name, number in zip(names, self.of, strict=True)
        ]
        sizes = {
            name: sum(p.numel() for p in module.parameters())
            for name, module in (('adapter', self.adapters), ('loss', self.loss))
        }
        trained = ''.join(f', {name} of {size:,} parameters' for name, size in sizes.items() if size)
        return (
            f'{self.name}: {type(self.loss).__name__} student '
            f'{side(self.student_taps, self.of_student(student))} -> {", ".join(theirs)}{trained}'
        )

    def forward(self, student: Features, targets: Sequence[Features]) -> Tensor:
        """Return the unweighted loss, a scalar."""
        return mean_over_teachers([self.against(number, student, targets[number]) for number in self.of])

    def against(self, number: int, student: Features, target: Features) -> Tensor:
        """Return the unweighted loss against one of the teachers."""
        levels, targets = self.of_student(student), self.of_teacher(target)
        if len(levels) != len(targets):
            raise UserError(
                f"term '{self.name}': the student's taps give {len(levels)} feature(s), the teacher's "
                f'{len(targets)}: name as many on both sides'
            )
        if self.adapters:
            first = list(self.of).index(number) * len(levels)
            adapters = self.adapters[first : first + len(levels)]
            levels = [adapter(level) for adapter, level in zip(adapters, levels, strict=True)]
        if getattr(self.loss, 'batch_relational', False):
            levels, targets = [gathered(x) for x in levels], [gathered(x) for x in targets]
        if hasattr(self.loss, 'adversaries') and len(levels) != 1:
            raise UserError(
                f"term '{self.name}': {type(self.loss).__name__} takes one feature a network, its logits, "
                f'got {len(levels)}: give one tap'
            )
        if getattr(self.loss, 'takes_pairs', False):
            if len(levels) != 2:
                raise UserError(
                    f"term '{self.name}': {type(self.loss).__name__} takes two features a network (the "
                    f'in- and output of a stage), got {len(levels)}: give a list of two taps'
                )
            losses = [self.loss(levels, targets)]
        else:
            losses = [self.loss(s, t) for s, t in zip(levels, targets, strict=True)]
        for loss in losses:
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise UserError(
                    f"term '{self.name}': {type(self.loss).__name__} must return a scalar, got "
                    f'{tuple(loss.shape) if isinstance(loss, Tensor) else loss!r}: a mean or a sum'
                )
        return sum(losses)

    @contextmanager
    def meeting(self, student: Features, targets: Sequence[Features]) -> Iterator[None]:
        """Say what meets what where, inside the block, the two cannot."""
        try:
            yield
        except (UserError, torch.OutOfMemoryError):
            raise
        except (ValueError, RuntimeError) as error:
            reason = ' '.join(str(error).split())
            raise UserError(f'{self.describe(student, targets)}: these cannot meet: {reason}') from error

    def untouched(self) -> Tensor | float:
        """Return 0 with a gradient of 0 for what the term trains, so that data-parallel finds no parameter unused."""
        return sum(0.0 * p.sum() for p in self.parameters())


def mean_over_teachers(losses: Sequence[Tensor]) -> Tensor:
    """Return the mean over the teachers; with one, its loss to the bit."""
    return losses[0] if len(losses) == 1 else torch.stack(losses).mean()
