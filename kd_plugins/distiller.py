"""The core that the hook and the models share: terms, adapters, the dry run, the losses of a step."""

import copy
import difflib
import inspect
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from mmengine.logging import MessageHub
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from kd_plugins.errors import UserError
from kd_plugins.recorder import Features, Recorder
from kd_plugins.registry import MODELS
from kd_plugins.schedule import Schedule
from kd_plugins.teacher import Teacher, build_teacher


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Leave the random states of Python, NumPy and torch as they were: what is built inside shifts no later draw."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        yield
    random.setstate(python)
    np.random.set_state(numpy)


def _checked_arguments(what: str, callable_: Any, record: Mapping[str, Any]) -> None:
    """Refuse a misspelt or missing option before the call, by its name."""
    options = {
        name: p for name, p in inspect.signature(callable_).parameters.items() if p.kind is not p.VAR_KEYWORD
    }
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(callable_).parameters.values()):
        return
    for name in record:
        if name not in options:
            near = difflib.get_close_matches(name, options, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f'options are {", ".join(options)}'
            raise UserError(f"{what} has no option '{name}': {hint}")
    for name, parameter in options.items():
        if parameter.default is parameter.empty and name not in record:
            raise UserError(f"{what} needs the option '{name}'")


def build_part(what: str, record: Mapping[str, Any] | nn.Module) -> nn.Module:
    """Build a loss or an adapter from its record.

    Raises:
        UserError: The type is unknown (near names are offered), or an option is misspelt or out of range.
    """
    if isinstance(record, nn.Module):
        return record
    if not isinstance(record, Mapping) or 'type' not in record:
        raise UserError(f"{what} must be a record with a 'type', as in dict(type='kd_plugins.NSTLoss'), got {record!r}")
    name = record['type']
    try:
        class_ = MODELS.get(name) if isinstance(name, str) else name
    except (RuntimeError, ImportError):
        class_ = None
    if class_ is None:
        near = difflib.get_close_matches(str(name).rpartition('.')[2], MODELS.module_dict, n=3)
        raise UserError(f"{what}: '{name}' is no registered module; nearest names: "
                        f'{", ".join(f"kd_plugins.{x}" for x in near) or "none"}')
    options = {key: value for key, value in record.items() if key != 'type'}
    _checked_arguments(f'{what} ({class_.__name__})', class_, options)
    try:
        return class_(**options)
    except ValueError as error:
        raise UserError(f'{what}: {error}') from error


def _auto_adapter(student: Tensor, teacher: Tensor) -> nn.Module:
    """Return a linear map from the student's channels to the teacher's: a 1x1 convolution on maps."""
    if student.dim() == teacher.dim() == 4:
        return nn.Conv2d(student.shape[1], teacher.shape[1], kernel_size=1)
    return nn.Linear(student.shape[-1], teacher.shape[-1])


def gathered(feature: Tensor) -> Tensor:
    """Return the feature of the global batch, with gradient; the tensor itself in a single process."""
    # A dry run, which needs no gradient, is each process's own; its tensors may lie where the backend does not reach.
    alone = not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)
    if alone or not torch.is_grad_enabled():
        return feature
    shape = torch.tensor(feature.shape, device=feature.device)
    shapes = [torch.empty_like(shape) for _ in range(dist.get_world_size())]
    dist.all_gather(shapes, shape)
    if any(not torch.equal(shape, other) for other in shapes):
        raise UserError(f'a relational loss compares the samples of all processes, whose shapes differ here '
                        f'({[tuple(s.tolist()) for s in shapes]}): tap a pooled feature, or train at a fixed size')
    if not feature.requires_grad:
        parts = [torch.empty_like(feature) for _ in shapes]
        dist.all_gather(parts, feature.contiguous())
        return torch.cat(parts)
    return torch.cat(all_gather(feature.contiguous()))


class Term(nn.Module):
    """One summand of the distillation loss: ``weight(t) * loss(adapter(student tap), teacher tap)``.

    Several taps, or a tap with several levels, are matched in order and their losses summed. A loss whose class says
    ``takes_pairs`` (FSP) gets its two taps together.

    Args:
        name: The loss appears in the log as ``loss_<name>``.
        loss: Loss module or its record.
        student: Tap of the student, or a list of taps.
        teacher: Tap of the teacher, or a list of as many.
        weight: A number, or the record of a :class:`~kd_plugins.schedule.Schedule`.
        adapter: ``None``; ``'auto'``, a trainable 1x1 convolution (a linear layer for vectors) from the student's
            channels to the teacher's; or the record of a module, built once a level.
    """

    def __init__(
        self, name: str, loss: Mapping[str, Any] | nn.Module, student: str | Sequence[str],
        teacher: str | Sequence[str], weight: float | Mapping[str, Any] = 1.0,
        adapter: str | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.loss = build_part(f"the loss of term '{name}'", loss)
        self.student_taps = [student] if isinstance(student, str) else list(student)
        self.teacher_taps = [teacher] if isinstance(teacher, str) else list(teacher)
        if isinstance(weight, Mapping):
            _checked_arguments(f"the weight of term '{name}'", Schedule, weight)
            weight = Schedule(**weight)
        elif not isinstance(weight, (int, float)):
            raise UserError(f"the weight of term '{name}' must be a number or dict(at=[...], value=[...]), "
                            f'got {weight!r}')
        self.weight = weight
        if isinstance(adapter, str) and adapter != 'auto':
            raise UserError(f"the adapter of term '{name}' must be None, 'auto' or a module record, got '{adapter}'")
        self._adapter = adapter
        self.adapters = nn.ModuleList()

    def current_weight(self) -> float:
        """Return the weight at this point of training."""
        return self.weight() if isinstance(self.weight, Schedule) else float(self.weight)

    def build_adapters(self, student: Features, teacher: Features) -> None:
        """Create the adapters, for the shapes seen in a dry run."""
        if self._adapter is None:
            return
        for s, t in zip(*self._levels(student, teacher), strict=True):
            self.adapters.append(
                _auto_adapter(s, t) if self._adapter == 'auto'
                else build_part(f"the adapter of term '{self.name}'", copy.deepcopy(self._adapter)))

    def _levels(self, student: Features, teacher: Features) -> tuple[list[Tensor], list[Tensor]]:
        return ([x for tap in self.student_taps for x in student[tap]],
                [x for tap in self.teacher_taps for x in teacher[tap]])

    def describe(self, student: Features, teacher: Features) -> str:
        """Say what meets what, in one line."""
        sides = [f'{"+".join(taps)} {" ".join(str(tuple(x.shape)) for x in levels)}' for taps, levels in
                 zip((self.student_taps, self.teacher_taps), self._levels(student, teacher), strict=True)]
        size = sum(p.numel() for p in self.adapters.parameters())
        adapter = f', adapter of {size:,} parameters' if size else ''
        return f'{self.name}: {type(self.loss).__name__} student {sides[0]} -> teacher {sides[1]}{adapter}'

    def forward(self, student: Features, teacher: Features) -> Tensor:
        """Return the unweighted loss, a scalar."""
        levels, targets = self._levels(student, teacher)
        if len(levels) != len(targets):
            raise UserError(f"term '{self.name}': the student's taps give {len(levels)} feature(s), the teacher's "
                            f'{len(targets)}: name as many on both sides')
        if self.adapters:
            levels = [adapter(level) for adapter, level in zip(self.adapters, levels, strict=True)]
        if getattr(self.loss, 'batch_relational', False):
            levels, targets = [gathered(x) for x in levels], [gathered(x) for x in targets]
        if getattr(self.loss, 'takes_pairs', False):
            if len(levels) != 2:
                raise UserError(f"term '{self.name}': {type(self.loss).__name__} takes two features a network (the "
                                f'in- and output of a stage), got {len(levels)}: give a list of two taps')
            return self.loss(levels, targets)
        return sum(self.loss(s, t) for s, t in zip(levels, targets, strict=True))


    def compare(self, student: Features, teacher: Features) -> Tensor:
        """Return the unweighted loss, or say what meets what where the two cannot."""
        try:
            return self(student, teacher)
        except UserError:
            raise
        except (ValueError, RuntimeError) as error:
            reason = ' '.join(str(error).split())
            raise UserError(f'{self.describe(student, teacher)}: these cannot meet: {reason}') from error


class Distillation(nn.Module):
    """Teacher, terms and adapters, bound to a student.

    As a module it holds the adapters only. The teacher follows ``.to()`` and appears nowhere else.

    Args:
        student: The network to train; it is listened to, not changed.
        teacher: Record for :func:`~kd_plugins.teacher.build_teacher`; with ``cache='folder'`` its answers are kept in a
            :class:`~kd_plugins.cache.AnswerCache`.
        terms: Records for :class:`Term`.

    Raises:
        UserError: Something in the records is wrong; the message names it.
    """

    def __init__(self, student: nn.Module, teacher: Mapping[str, Any], terms: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        with preserved_rng():
            built = []
            for number, record in enumerate(terms, 1):
                _checked_arguments(f"term '{record.get('name', f'number {number}')}'", Term, record)
                built.append(Term(**record))
            self.terms = nn.ModuleList(built)
            names = [term.name for term in built]
            for name in names:
                if names.count(name) > 1:
                    raise UserError(f"two terms are named '{name}': give each its own name")
            record = dict(teacher)
            cache = record.pop('cache', None)
            _checked_arguments('the teacher', build_teacher, record)
            network = build_teacher(**record)
        self.recorder = Recorder(student, [tap for term in built for tap in term.student_taps])
        self.teacher = Teacher(network, [tap for term in built for tap in term.teacher_taps],
                               getattr(student, 'data_preprocessor', None), cache)

    def _apply(self, fn: Any, recurse: bool = True) -> 'Distillation':
        self.teacher.apply(fn)
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def dry_run(self, student: nn.Module, inputs: Tensor, data_samples: Sequence[Any] | None) -> list[str]:
        """Run both networks once, build the adapters, check every term, and describe each in a line.

        Nothing that training depends on changes: no BatchNorm statistic, no random state.

        Raises:
            UserError: A tap does not run, or features cannot meet; the message holds both shapes.
        """
        modes = {module: module.training for module in student.modules()}
        with preserved_rng():
            student.eval()
            with self.recorder.probing() as features:
                student(inputs, data_samples, mode='tensor')
            for module, mode in modes.items():
                module.training = mode
            targets = self.teacher.probe(inputs, data_samples)
            for whose, found in (('student', features), ('teacher', targets)):
                for tap, levels in found.items():
                    if not levels:
                        raise UserError(f"the {whose}'s module '{tap}' puts out no tensor in a forward pass: "
                                        'tap another one')
            lines = []
            for term in self.terms:
                term.build_adapters(features, targets)
                term.adapters.to(inputs.device)
                term.compare(features, targets)
                lines.append(term.describe(features, targets))
        return lines

    def forward(self, features: Features, inputs: Tensor, data_samples: Sequence[Any] | None) -> dict[str, Tensor]:
        """Return the weighted losses of a step, under ``loss_<term>``.

        A term whose weight is 0 is not computed, and the teacher not run where all are.

        Args:
            features: What the student's taps put out for this batch.
            inputs: The batch as the student's preprocessor returned it.
            data_samples: Its annotations.

        Raises:
            UserError: A loss is not finite.
        """
        weights = {term.name: term.current_weight() for term in self.terms}
        targets = self.teacher(inputs, data_samples) if any(weights.values()) else {}
        losses = {}
        for term in self.terms:
            weight = weights[term.name]
            if weight:
                loss = weight * term.compare(features, targets)
            else:  # touches the adapters, so that data-parallel finds no parameter unused
                loss = inputs.new_zeros(()) + sum(0.0 * p.sum() for p in term.adapters.parameters())
            losses[f'loss_{term.name}'] = loss
        if losses and not torch.stack([x.detach().float() for x in losses.values()]).isfinite().all():
            bad = {name: x.item() for name, x in losses.items() if not x.isfinite()}
            iteration = MessageHub.get_current_instance().get_info('iter', 0) + 1
            raise UserError(f'{", ".join(f"{k} is {v}" for k, v in bad.items())} at iteration {iteration}: training '
                            "stops, the last good checkpoint is kept; lower the term's weight or the learning rate")
        return losses

    def add_to(self, losses: dict[str, Any], features: Features, inputs: Tensor, data_samples: Any) -> dict[str, Any]:
        """Return the task's losses with the distillation's beside them."""
        own = self(features, inputs, data_samples)
        for name in own:
            if name in losses:
                raise UserError(f"the student already has a '{name}': rename the term '{name.removeprefix('loss_')}'")
        return losses | own
