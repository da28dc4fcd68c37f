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

    Several taps, or a tap with several levels, are matched in order and their losses summed; over several teachers the
    mean is taken. With :class:`~kd_plugins.losses.KDLoss`, that has the gradient of the divergence from the teachers'
    mean probability. A loss whose class says ``takes_pairs`` (FSP) gets its two taps together; one that has
    ``adversaries`` (BSS) compares on inputs of its own making.

    Args:
        name: The loss appears in the log as ``loss_<name>``.
        loss: Loss module or its record.
        student: Tap of the student, or a list of taps.
        teacher: Tap of the teacher, or a list of as many.
        weight: A number, or the record of a :class:`~kd_plugins.schedule.Schedule`.
        adapter: ``None``; ``'auto'``, a trainable 1x1 convolution (a linear layer for vectors) from the student's
            channels to the teacher's; or the record of a module, built once a level (and a teacher).
        of: Of several teachers, those that have this tap: their places in the list, from 0. ``None`` for all.
    """

    def __init__(
        self, name: str, loss: Mapping[str, Any] | nn.Module, student: str | Sequence[str],
        teacher: str | Sequence[str], weight: float | Mapping[str, Any] = 1.0,
        adapter: str | Mapping[str, Any] | None = None, of: Sequence[int] | None = None,
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
        self.of = of

    def choose_teachers(self, count: int) -> None:
        """Settle which of so many teachers the term has."""
        if self.of is None:
            self.of = range(count)
        known = isinstance(self.of, Sequence) and all(x in range(count) for x in self.of)
        if not known or not self.of or len(set(self.of)) < len(self.of):
            raise UserError(f"term '{self.name}': of must list places of teachers, each once, from 0 to {count - 1}, "
                            f'got {self.of!r}')

    def current_weight(self) -> float:
        """Return the weight at this point of training."""
        return self.weight() if isinstance(self.weight, Schedule) else float(self.weight)

    def build_adapters(self, student: Features, targets: Sequence[Features]) -> None:
        """Create the adapters, for the shapes seen in a dry run."""
        if self._adapter is None:
            return
        for number in self.of:
            for s, t in zip(self.of_student(student), self.of_teacher(targets[number]), strict=True):
                self.adapters.append(
                    _auto_adapter(s, t) if self._adapter == 'auto'
                    else build_part(f"the adapter of term '{self.name}'", copy.deepcopy(self._adapter)))

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
        theirs = [f'{name} {side(self.teacher_taps, self.of_teacher(targets[number]))}'
                  for name, number in zip(names, self.of, strict=True)]
        sizes = {name: sum(p.numel() for p in module.parameters())
                 for name, module in (('adapter', self.adapters), ('loss', self.loss))}
        trained = ''.join(f', {name} of {size:,} parameters' for name, size in sizes.items() if size)
        return (f'{self.name}: {type(self.loss).__name__} student '
                f'{side(self.student_taps, self.of_student(student))} -> {", ".join(theirs)}{trained}')

    def forward(self, student: Features, targets: Sequence[Features]) -> Tensor:
        """Return the unweighted loss, a scalar."""
        return _mean([self.against(number, student, targets[number]) for number in self.of])

    def against(self, number: int, student: Features, target: Features) -> Tensor:
        """Return the unweighted loss against one of the teachers."""
        levels, targets = self.of_student(student), self.of_teacher(target)
        if len(levels) != len(targets):
            raise UserError(f"term '{self.name}': the student's taps give {len(levels)} feature(s), the teacher's "
                            f'{len(targets)}: name as many on both sides')
        if self.adapters:
            first = list(self.of).index(number) * len(levels)
            adapters = self.adapters[first:first + len(levels)]
            levels = [adapter(level) for adapter, level in zip(adapters, levels, strict=True)]
        if getattr(self.loss, 'batch_relational', False):
            levels, targets = [gathered(x) for x in levels], [gathered(x) for x in targets]
        if hasattr(self.loss, 'adversaries') and len(levels) != 1:
            raise UserError(f"term '{self.name}': {type(self.loss).__name__} takes one feature a network, its logits, "
                            f'got {len(levels)}: give one tap')
        if getattr(self.loss, 'takes_pairs', False):
            if len(levels) != 2:
                raise UserError(f"term '{self.name}': {type(self.loss).__name__} takes two features a network (the "
                                f'in- and output of a stage), got {len(levels)}: give a list of two taps')
            return self.loss(levels, targets)
        return sum(self.loss(s, t) for s, t in zip(levels, targets, strict=True))

    @contextmanager
    def meeting(self, student: Features, targets: Sequence[Features]) -> Iterator[None]:
        """Say what meets what where, inside the block, the two cannot."""
        try:
            yield
        except UserError:
            raise
        except (ValueError, RuntimeError) as error:
            reason = ' '.join(str(error).split())
            raise UserError(f'{self.describe(student, targets)}: these cannot meet: {reason}') from error

    def untouched(self) -> Tensor | float:
        """Return 0 with a gradient of 0 for what the term trains, so that data-parallel finds no parameter unused."""
        return sum(0.0 * p.sum() for p in self.parameters())


def _mean(losses: Sequence[Tensor]) -> Tensor:
    """Return the mean over the teachers; with one, its loss to the bit."""
    return losses[0] if len(losses) == 1 else torch.stack(losses).mean()


def _labels(term: Term, data_samples: Sequence[Any] | None) -> Tensor:
    """Return the classes (N,) of images that have one each."""
    labels = []
    for sample in [None] if data_samples is None else data_samples:
        label, mixed = getattr(sample, 'gt_label', None), getattr(sample, 'gt_score', None) is not None
        if mixed or not isinstance(label, Tensor) or label.numel() != 1:
            raise UserError(f"term '{term.name}': {type(term.loss).__name__} needs images of one class each, a "
                            f'gt_label of one number in each data sample, got {"a gt_score" if mixed else label}: use '
                            'it for single-label classification, without mixing images')
        labels.append(label.flatten())
    return torch.cat(labels)


class Distillation(nn.Module):
    """Teachers, terms and adapters, bound to a student.

    As a module it holds the adapters and what a loss trains. The teachers follow ``.to()`` and appear nowhere else.

    Args:
        student: The network to train; it is listened to, not changed.
        teacher: Record for :func:`~kd_plugins.teacher.build_teacher`, or a list of such records; with
            ``cache='folder'`` a teacher's answers are kept in a :class:`~kd_plugins.cache.AnswerCache`, with
            ``bf16=True`` it answers in bfloat16, see :class:`~kd_plugins.teacher.Teacher`.
        terms: Records for :class:`Term`.
        task: Whether the task's losses train. If not, they are computed and logged still, but give no gradient.

    Raises:
        UserError: Something in the records is wrong; the message names it.
    """

    def __init__(
        self, student: nn.Module, teacher: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        terms: Sequence[Mapping[str, Any]], task: bool = True,
    ) -> None:
        super().__init__()
        self.task = task
        records = [teacher] if isinstance(teacher, Mapping) else list(teacher)
        if not records:
            raise UserError('a distillation needs a teacher: give a record, dict(config=..., checkpoint=...), or a '
                            'list of such records')
        with preserved_rng():
            built = []
            for number, record in enumerate(terms, 1):
                _checked_arguments(f"term '{record.get('name', f'number {number}')}'", Term, record)
                built.append(Term(**record))
                built[-1].choose_teachers(len(records))
            self.terms = nn.ModuleList(built)
            names = [term.name for term in built]
            for name in names:
                if names.count(name) > 1:
                    raise UserError(f"two terms are named '{name}': give each its own name")
            self.recorder = Recorder(student, [tap for term in built for tap in term.student_taps])
            self.teachers = [self._build_teacher(number, record, len(records) > 1)
                             for number, record in enumerate(records)]

    def _build_teacher(self, number: int, record: Mapping[str, Any], several: bool) -> Teacher:
        whose = f'teacher {number}' if several else 'the teacher'
        taps = [tap for term in self.terms if number in term.of for tap in term.teacher_taps]
        if several and not taps:
            raise UserError(f'{whose}: no term learns from it: add its place to an of=[...], or leave it out')
        record = dict(record)
        ways = {name: record.pop(name) for name in ('cache', 'bf16') if name in record}
        _checked_arguments(whose, build_teacher, record)
        try:
            return Teacher(
                build_teacher(**record), taps, getattr(self.recorder.model, 'data_preprocessor', None), **ways)
        except UserError as error:
            if not several:
                raise
            raise UserError(f'{whose}: {error}; of=[...] keeps a term to the teachers that it fits') from error

    @property
    def teacher(self) -> Teacher:
        """The first teacher."""
        return self.teachers[0]

    def _apply(self, fn: Any, recurse: bool = True) -> 'Distillation':
        for teacher in self.teachers:
            teacher.apply(fn)
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def dry_run(self, student: nn.Module, inputs: Tensor, data_samples: Sequence[Any] | None) -> list[str]:
        """Run the networks once, build the adapters, check every term, and describe each in a line.

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
            targets = [teacher.probe(inputs, data_samples) for teacher in self.teachers]
            for whose, found in (('student', features), *(('teacher', target) for target in targets)):
                for tap, levels in found.items():
                    if not levels:
                        raise UserError(f"the {whose}'s module '{tap}' puts out no tensor in a forward pass: "
                                        'tap another one')
            lines = []
            for term in self.terms:
                term.build_adapters(features, targets)
                term.to(inputs.device)
                with term.meeting(features, targets):
                    term(features, targets)
                lines.append(term.describe(features, targets))
        return lines

    def ask(self, inputs: Tensor, data_samples: Sequence[Any] | None) -> list[Features]:
        """Return what each teacher's taps put out for a batch; nothing of one all of whose terms have weight 0.

        Best before the student runs: what the teacher's layers need meanwhile is then free again for the student's,
        instead of lying beside what these keep for the backward pass.
        """
        asked = {number for term in self.terms if term.current_weight() for number in term.of}
        return [teacher(inputs, data_samples) if number in asked else {}
                for number, teacher in enumerate(self.teachers)]

    def forward(
        self, features: Features, targets: Sequence[Features], inputs: Tensor, data_samples: Sequence[Any] | None,
    ) -> dict[str, Tensor]:
        """Return the weighted losses of a step, under ``loss_<term>``; a term whose weight is 0 is not computed.

        Args:
            features: What the student's taps put out for this batch.
            targets: What the teachers' did, from :meth:`ask`.
            inputs: The batch as the student's preprocessor returned it.
            data_samples: Its annotations.

        Raises:
            UserError: A loss is not finite.
        """
        weights = {term.name: term.current_weight() for term in self.terms}
        losses = {}
        for term in self.terms:
            weight = weights[term.name]
            if not weight:
                loss = inputs.new_zeros(()) + term.untouched()
            elif hasattr(term.loss, 'adversaries'):
                loss = weight * self._on_adversaries(term, features, targets, inputs, data_samples)
            else:
                with term.meeting(features, targets):
                    loss = weight * term(features, targets)
            losses[f'loss_{term.name}'] = loss
        if losses and not torch.stack([x.detach().float() for x in losses.values()]).isfinite().all():
            bad = {name: x.item() for name, x in losses.items() if not x.isfinite()}
            iteration = MessageHub.get_current_instance().get_info('iter', 0) + 1
            raise UserError(f'{", ".join(f"{k} is {v}" for k, v in bad.items())} at iteration {iteration}: training '
                            "stops, the last good checkpoint is kept; lower the term's weight or the learning rate")
        return losses

    def _on_adversaries(
        self, term: Term, features: Features, targets: Sequence[Features], inputs: Tensor,
        data_samples: Sequence[Any] | None,
    ) -> Tensor:
        """Return a term's loss on inputs that it makes from those of the batch, with one more pass of the student.

        The loss has ``choose(student logits, teacher logits, labels) -> places in the batch`` and
        ``adversaries(inputs, labels, teacher logits, teacher) -> inputs``, these for the chosen alone, where
        ``teacher(inputs, places)`` gives logits that can be differentiated, for inputs at some places among them. It is
        0 where fewer than two are chosen: of one, a BatchNorm has no statistics.

        The student runs in mode ``tensor``, which no recording but this one listens to. Processes may choose different
        numbers of images: gradients are averaged over processes after the backward pass, which takes part in it with
        zeros where fewer are chosen.
        """
        student = self.recorder.model
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 and any(
                isinstance(module, nn.SyncBatchNorm) for module in student.modules()):
            raise UserError(f"term '{term.name}': {type(term.loss).__name__} runs the student on as many images as a "
                            'process has found, which SyncBatchNorm cannot: leave sync_bn out')
        labels = _labels(term, data_samples).to(inputs.device)
        losses = []
        for number in term.of:
            with term.meeting(features, targets):
                (own,), (other,) = term.of_student(features), term.of_teacher(targets[number])
                chosen = term.loss.choose(own, other, labels)
            if len(chosen) < 2:
                losses.append(0.0 * own.float().sum() + term.untouched())
                continue
            samples = [data_samples[i] for i in chosen.tolist()]

            def logits(x: Tensor, places: Tensor, number: int = number, samples: Sequence[Any] = samples) -> Tensor:
                theirs = [samples[i] for i in places.tolist()]
                return term.of_teacher(self.teachers[number].answer(x, theirs))[0]

            made = term.loss.adversaries(inputs[chosen], labels[chosen], other[chosen], logits)
            with torch.no_grad():
                target = self.teachers[number].answer(made, samples)
            with self.recorder.recording() as found:
                student(made, samples, mode='tensor')
            losses.append(term.against(number, found, target))
        return _mean(losses)

    def add_to(
        self, losses: dict[str, Any], features: Features, targets: Sequence[Features], inputs: Tensor,
        data_samples: Sequence[Any] | None,
    ) -> dict[str, Any]:
        """Return the task's losses with the distillation's beside them; the arguments are those of :meth:`forward`.

        Raises:
            UserError: Names collide, or nothing trains.
        """
        own = self(features, targets, inputs, data_samples)
        for name in own:
            if name in losses:
                raise UserError(f"the student already has a '{name}': rename the term '{name.removeprefix('loss_')}'")
        if not self.task:
            if not any(loss.requires_grad for loss in own.values()):
                raise UserError("with task=False the terms alone train, but all their weights are 0: give one a weight")
            losses = {name: value.detach() if isinstance(value, Tensor) else [x.detach() for x in value]
                      for name, value in losses.items()}
        return losses | own
