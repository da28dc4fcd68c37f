"""A term of the distillation loss: taps, adapter, loss and weight."""

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from kd_plugins.distillation.adapters import ABF, adapter_for
from kd_plugins.distillation.layout import Layout, Size, Tokens, layout_of, size_of
from kd_plugins.distillation.recorder import Features, Recorder
from kd_plugins.distillation.samples import indices_of, labels_of, note_several_classes
from kd_plugins.distillation.schedule import Schedule
from kd_plugins.distillation.teacher import Teacher
from kd_plugins.errors import UserError
from kd_plugins.functional.gram import resized
from kd_plugins.losses import AdversarialLoss, DistillationLoss
from kd_plugins.registry import build_part, check_arguments
from kd_plugins.utils.distributed import gathered
from kd_plugins.utils.names import brief


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


Sides = tuple[list[Tensor], list[Tensor]]


class Term(nn.Module):
    """A term of the distillation loss: ``weight(t) * loss(adapter(student tap), teacher tap)``.

    Several taps, or a tap with several levels, are matched in order and their losses summed. Losses against several
    teachers are averaged; with :class:`~kd_plugins.losses.KDLoss`, the mean has the gradient of the divergence from the
    teachers' mean probabilities. The class of the loss declares what it needs besides the two features, see
    :class:`~kd_plugins.losses.DistillationLoss`.

    Where the loss takes maps, tokens (B, N, C) and channels-last maps (B, H, W, C) become maps (B, C, H, W), see
    :mod:`kd_plugins.distillation.layout`. Where it compares positions, tokens do so only if the other network has a
    map, or another number of tokens.

    Args:
        name: Name of the term; the log shows its loss as ``loss_<name>``.
        loss: Loss module, or its config dict.
        student: Tap of the student, or a list of taps.
        teacher: Tap of the teacher, or a list of as many.
        weight: Weight of the loss: a number, or the config dict of a
            :class:`~kd_plugins.distillation.schedule.Schedule`.
        adapter: ``None``; ``'auto'``, a trainable 1x1 convolution (a linear layer for vectors) from the student's
            channels to the teacher's; ``'mlp'``, two layers with LayerNorm and GELU in between, see
            :class:`~kd_plugins.distillation.adapters.MLPAdapter`; or the config dict of a module. It is built once for
            each level and teacher. ``'abf'`` is built once for each teacher: it fuses all levels, from the last to the
            first, see :class:`~kd_plugins.distillation.adapters.ABF`, to the channels and sizes of the teacher's.
        teachers: Indices, from 0, of the teachers to learn from, where there are several. ``None`` means all.
        resize: Network whose maps keep their size, ``'student'`` or ``'teacher'``; the other's are resized to it,
            behind the adapter, bilinearly where they grow and by area where they shrink. ``'smaller'`` leaves it to the
            loss, which pools to the smaller size.
        student_tokens: Layout of the student's tokens, where neither the network nor the input's size settles it, or
            the class token alone: the arguments of :class:`~kd_plugins.distillation.layout.Tokens`, as
            ``dict(prefix=1, size=(16, 16))`` or ``dict(take='cls')``. With a prefix or a size the tokens become a map,
            whatever the loss takes.
        teacher_tokens: Layout of the teacher's tokens, likewise.
        student_levels: Indices, from 0, of the levels that the term takes of those which the student's taps give, in
            this order: ``[0, 1, 2]`` for the first three of an FPN's. ``None`` means all.
        teacher_levels: Indices of the teacher's levels, likewise, as many.

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
        resize: str = 'smaller',
        student_tokens: Mapping[str, Any] | None = None,
        teacher_tokens: Mapping[str, Any] | None = None,
        student_levels: Sequence[int] | None = None,
        teacher_levels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(name, str) or not name:
            raise UserError(f'the name of a term must be a string that is not empty, got {name!r}')
        self.name = name
        self.loss = build_part(f"the loss of term '{name}'", loss)
        self._is_own = type(self.loss).__module__.startswith('kd_plugins.')
        declared = ('batch_relational', 'takes_pairs', 'needs_labels', 'needs_indices', 'per_level', 'adversaries')
        marks = [x for x in declared if hasattr(self.loss, x)]
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
                f"the weight of term '{name}' must be a number or dict(at=[...], value=[...]), got {brief(weight)}"
            )
        values = self.weight.value if isinstance(self.weight, Schedule) else [self.weight]
        if not all(isfinite(x) and x >= 0 for x in values):
            raise UserError(f"the weight of term '{name}' must be finite and not below 0, got {weight!r}")
        if isinstance(adapter, str) and adapter not in ('auto', 'mlp', 'abf'):
            raise UserError(
                f"the adapter of term '{name}' must be None, 'auto', 'mlp', 'abf' or a config dict, got '{adapter}'"
            )
        if resize not in ('smaller', 'student', 'teacher'):
            raise UserError(f"the resize of term '{name}' must be 'smaller', 'student' or 'teacher', got {resize!r}")
        self.resize = resize
        self._tokens = {
            'student': self._stated_tokens('student_tokens', student_tokens),
            'teacher': self._stated_tokens('teacher_tokens', teacher_tokens),
        }
        self._picked = {
            'student': self._stated_levels('student_levels', student_levels),
            'teacher': self._stated_levels('teacher_levels', teacher_levels),
        }
        self._layouts: dict[tuple[int | None, str, int], Layout] = {}  # of teacher (None: student), tap and level
        self._adapter = adapter
        self.adapters = nn.ModuleList()
        self.copies = nn.ModuleList()  # of a loss per level, for all levels and teachers but the first
        self._chosen = teachers
        self.teachers: Sequence[int] = ()

    @property
    def _declared(self) -> DistillationLoss | type[DistillationLoss]:
        return self.loss if isinstance(self.loss, DistillationLoss) else DistillationLoss

    @property
    def _who(self) -> str:
        return f"term '{self.name}': {type(self.loss).__name__}"

    @property
    def needs_indices(self) -> bool:
        """Whether the loss needs the indices of the images in the training set."""
        return self._declared.needs_indices

    def _taps(self, side: str, taps: Any) -> list[str]:
        names = [taps] if isinstance(taps, str) else taps
        if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
            raise UserError(
                f"term '{self.name}': {side} must be the name of a module or a list of such names, got {taps!r}"
            )
        return list(names)

    def _stated_tokens(self, option: str, tokens: Mapping[str, Any] | None) -> Tokens:
        what = f"{option} of term '{self.name}'"
        if tokens is None:
            return Tokens()
        if not isinstance(tokens, Mapping):
            raise UserError(f'{what} must be a dict, as dict(prefix=1, size=(16, 16)), got {tokens!r}')
        check_arguments(what, Tokens, tokens)
        stated = Tokens(**tokens)
        stated.check(what)
        return stated

    def _stated_levels(self, option: str, levels: Sequence[int] | None) -> Sequence[int] | None:
        listed = isinstance(levels, Sequence) and not isinstance(levels, str) and len(levels) > 0
        if levels is not None and not (
            listed and all(isinstance(x, int) and not isinstance(x, bool) and x >= 0 for x in levels)
        ):
            raise UserError(
                f"{option} of term '{self.name}' must list indices of levels, from 0, as [0, 1, 2], got {levels!r}"
            )
        return levels

    def taps_in(self, side: str, network: nn.Module) -> list[str]:
        """Return the names of the modules whose outputs the term needs of a network.

        Args:
            side: ``'student'`` or ``'teacher'``.
            network: The student or a teacher.
        """
        return self.student_taps if side == 'student' else self.teacher_taps

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

    def prepare(self, student: Features, targets: Sequence[Features], batch: Batch) -> str:
        """Build the adapters for the shapes of a dry run, try the loss on them, and describe the term in a line.

        Raises:
            UserError: The shapes do not match, or the loss does not take them.
        """
        levels = self.student_levels(student)
        self._check_first_axis('student', student, len(batch.inputs))
        for index in self.teachers:
            self._check_first_axis('teacher', targets[index], len(batch.inputs))
        with self.explain_shape_errors(student, targets):
            taken = {index: self._taken(index, student, targets[index], batch) for index in self.teachers}
        if self._adapter is not None:
            with self.explain_shape_errors(student, targets):
                for pair in taken.values():
                    self.adapters.extend(self._adapters_for(*pair))
            self._notice_size(batch.student.model)
        if self._declared.over_positions:
            self._notice_single_positions(taken.values())
        for index, pair in taken.items():
            if batch.teachers[index].input_size(batch.inputs) == size_of(batch.inputs):
                self._notice_shifted_levels(*pair)
        if self._declared.per_level:
            count = sum(len(levels) for levels, _ in taken.values())
            self.copies.extend(copy.deepcopy(self.loss) for _ in range(count - 1))
        self.to(levels[0].device)
        labels = indices = None
        if self._declared.needs_labels:
            labels = torch.zeros(len(levels[0]), dtype=torch.long, device=levels[0].device)
        if self.needs_indices:
            indices = torch.arange(len(levels[0]), device=levels[0].device) % (self._declared.num_samples or 1)
        self.compare(student, targets, batch, labels, indices)
        return self.describe(student, targets, taken)

    def _check_first_axis(self, side: str, features: Features, images: int) -> None:
        taps = self.student_taps if side == 'student' else self.teacher_taps
        for tap in taps:
            for x in features[tap]:
                if x.ndim > 2 and x.shape[0] != images == x.shape[1]:
                    raise UserError(
                        f"term '{self.name}': the {side}'s '{tap}' yields {tuple(x.shape)} for {images} images: its "
                        "layers come first, not the images, as of a DETR's decoder; tap one of the layers, as "
                        f'{tap}.layers.{x.shape[0] - 1}'
                    )

    def _adapters_for(self, levels: list[Tensor], targets: list[Tensor]) -> list[nn.Module]:
        """Build the adapters for the levels of a student and of a teacher.

        Raises:
            ValueError: The levels are not what the adapter takes.
        """
        if self._adapter == 'abf':
            if len(levels) < 2 or any(x.ndim != 4 for x in (*levels, *targets)):
                raise ValueError(
                    "adapter='abf' fuses maps (B, C, H, W) of several levels; list the ends of the stages, and for the "
                    "pooled features neck.gap, not neck, or give adapter='auto'"
                )
            return [ABF([x.shape[1] for x in levels], [x.shape[1] for x in targets])]
        pairs = zip(levels, targets, strict=True)
        if isinstance(self._adapter, str):
            return [adapter_for(self._adapter, s, t) for s, t in pairs]
        adapter: Any = self._adapter
        return [build_part(f"the adapter of term '{self.name}'", copy.deepcopy(adapter)) for _ in pairs]

    def _notice_size(self, student: nn.Module) -> None:
        size, least = (sum(p.numel() for p in module.parameters()) for module in (self.adapters, student))
        if size > least:
            remedy = "adapter='auto', or a tap with fewer channels," if self._adapter == 'mlp' else 'another tap'
            print_log(
                f"term '{self.name}': its adapter has {size:,} parameters, more than the student's {least:,}, and may "
                f"learn in the student's place; {remedy} makes it smaller",
                'current',
                logging.WARNING,
            )

    def _notice_single_positions(self, taken: Iterable[Sides]) -> None:
        maps = [(s, t) for pair in taken for s, t in zip(*pair, strict=True) if s.ndim == t.ndim == 4]
        kept = {'student': [[s] for s, _ in maps], 'teacher': [[t] for _, t in maps]}.get(self.resize, maps)
        if any(min(map(size_of, sides)) == (1, 1) for sides in kept):
            print_log(
                f'{self._who} compares where a map is active, and these have one position, so that it is constant and '
                'trains nothing: tap larger maps, or take a loss of class scores or samples',
                'current',
                logging.WARNING,
            )

    def _notice_shifted_levels(self, levels: list[Tensor], targets: list[Tensor]) -> None:
        if any(x.ndim != 4 for x in (*levels, *targets)) or any(self._picked.values()):
            return
        (own, other), count = ([size_of(x) for x in side] for side in (levels, targets)), len(levels)
        for k in range(1, count - 1):
            ahead = own[:-k] == other[k:]
            if own != other and (ahead or own[k:] == other[:-k]):
                first, last = [*range(count - k)], [*range(k, count)]
                student, teacher = (first, last) if ahead else (last, first)
                print_log(
                    f'{self._who} pairs levels of unlike strides (the first ones are {own[0]} and {other[0]}); '
                    f'student_levels={student} and teacher_levels={teacher} pair equal ones',
                    'current',
                    logging.WARNING,
                )
                return

    def student_levels(self, features: Features) -> list[Tensor]:
        """Return the levels of the student's taps that the term takes, in order."""
        return self._of_levels('student', self.student_taps, [x for tap in self.student_taps for x in features[tap]])

    def teacher_levels(self, features: Features) -> list[Tensor]:
        """Return the levels of a teacher's taps that the term takes, in order."""
        return self._of_levels('teacher', self.teacher_taps, [x for tap in self.teacher_taps for x in features[tap]])

    def _of_levels(self, side: str, taps: list[str], levels: list[Any]) -> list[Any]:
        """Return those of a network's levels, or of what belongs to each of them, that the term takes."""
        picked = self._picked[side]
        if picked is None or not levels:
            return levels
        if max(picked) >= len(levels):
            raise UserError(
                f"{side}_levels of term '{self.name}' are {list(picked)}, but {'+'.join(taps)} of the {side} gives "
                f'{len(levels)} level(s): list indices from 0 to {len(levels) - 1}'
            )
        return [levels[index] for index in picked]

    def describe(self, student: Features, targets: Sequence[Features], taken: Mapping[int, Sides] | None = None) -> str:
        """Return a line with the taps, the shapes of their features, and the numbers of trained parameters.

        Args:
            student: Features at the student's taps.
            targets: Features at each teacher's taps.
            taken: What the loss takes of them for each teacher, where that is known.
        """

        def side(which: str, taps: list[str], levels: list[Tensor], taken: list[Tensor]) -> str:
            picked = self._picked[which]
            name = '+'.join(tap or '(output)' for tap in taps) + (f' {list(picked)}' if picked else '')
            shapes = [
                f'{tuple(x.shape)}' + (f' as {tuple(y.shape)}' if x.shape != y.shape else '')
                for x, y in zip(levels, taken or levels, strict=True)
            ]
            return f'{name} {" ".join(shapes)}'

        pairs: Mapping[int, Sides] = taken or dict.fromkeys(self.teachers, ([], []))
        teachers = [
            f'teacher{f" {index}" if len(targets) > 1 else ""} '
            f'{side("teacher", self.teacher_taps, self.teacher_levels(targets[index]), pairs[index][1])}'
            for index in self.teachers
        ]
        sizes = {
            name: sum(p.numel() for p in module.parameters())
            for name, module in (('adapter', self.adapters), ('loss', nn.ModuleList([self.loss, *self.copies])))
        }
        trained = ''.join(f', {name} of {size:,} parameters' for name, size in sizes.items() if size)
        return (
            f'{self.name}: {type(self.loss).__name__} student '
            f'{side("student", self.student_taps, self.student_levels(student), pairs[self.teachers[0]][0])} -> '
            f'{", ".join(teachers)}{trained}'
        )

    def forward(self, student: Features, targets: Sequence[Features], batch: Batch) -> Tensor:
        """Return the unweighted loss, a scalar.

        Args:
            student: Features at the student's taps for the batch.
            targets: Features at each teacher's taps for the batch.
            batch: The batch.

        Raises:
            UserError: The loss does not take the shapes, or needs labels or indices that the batch does not have.
        """
        labels = indices = None
        if self._declared.needs_labels:
            labels = self.labels(batch.data_samples).to(batch.inputs.device)
        if self.needs_indices:
            indices = torch.tensor(self.indices(batch.data_samples), device=batch.inputs.device)
        return self.compare(student, targets, batch, labels, indices)

    def compare(
        self,
        student: Features,
        targets: Sequence[Features],
        batch: Batch,
        labels: Tensor | None = None,
        indices: Tensor | None = None,
    ) -> Tensor:
        """Return the unweighted loss, the mean over the teachers."""
        with self.explain_shape_errors(student, targets):
            return mean_over_teachers(
                [self.against(x, student, targets[x], batch, labels, indices) for x in self.teachers]
            )

    def against(
        self,
        index: int,
        student: Features,
        target: Features,
        batch: Batch,
        labels: Tensor | None = None,
        indices: Tensor | None = None,
    ) -> Tensor:
        """Return the unweighted loss against the teacher with this index.

        Raises:
            UserError: The numbers of levels do not match or do not suit the loss, or the loss is no scalar.
        """
        levels, targets = self._taken(index, student, target, batch)
        levels = self._adapted(index, levels, targets)
        if self.resize != 'smaller':
            levels, targets = self._resized(levels, targets)
        if self._declared.batch_relational:
            levels, targets = [gathered(x) for x in levels], [gathered(x) for x in targets]
            labels, indices = (None if x is None else gathered(x) for x in (labels, indices))
        if not self._is_own:
            # Another's loss may view maps as rows, which channels-last ones, as a teacher gives on a CPU, do not allow;
            # and mostly wants one type, where a teacher in bfloat16 gives another.
            kinds = [torch.promote_types(s.dtype, t.dtype) for s, t in zip(levels, targets, strict=True)]
            levels, targets = (
                [x.to(kind).contiguous() for x, kind in zip(side, kinds, strict=True)] for side in (levels, targets)
            )
        pairs = [(levels, targets)] if self._declared.takes_pairs else list(zip(levels, targets, strict=True))
        modules = [self.loss] * len(pairs)
        if self.copies:
            start = list(self.teachers).index(index) * len(levels)
            modules = [self.loss, *self.copies][start : start + len(pairs)]
        arguments = [] if labels is None else [labels]
        options = {} if indices is None else dict(indices=indices)
        losses = [module(s, t, *arguments, **options) for module, (s, t) in zip(modules, pairs, strict=True)]
        for loss in losses:
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise UserError(
                    f"term '{self.name}': {type(self.loss).__name__} must return a scalar, got "
                    f'{tuple(loss.shape) if isinstance(loss, Tensor) else loss!r}: a mean or a sum'
                )
        return sum(losses)

    def _adapted(self, index: int, levels: list[Tensor], targets: list[Tensor]) -> list[Tensor]:
        """Return the student's levels behind the adapters for the teacher with this index."""
        if not self.adapters:
            return levels
        position = list(self.teachers).index(index)
        if self._adapter == 'abf':
            kept = levels if self.resize == 'student' else targets
            return self.adapters[position](levels, [size_of(x) for x in kept])
        adapters = self.adapters[position * len(levels) : (position + 1) * len(levels)]
        return [adapter(level) for adapter, level in zip(adapters, levels, strict=True)]

    def _taken(self, index: int, student: Features, target: Features, batch: Batch) -> Sides:
        """Return the features as the loss takes them: the tokens that the term states, as maps where they have to be.

        Raises:
            UserError: The numbers of levels do not match or do not suit the loss.
            ValueError: Tokens fit no grid, or are not what the term states.
        """
        pairs = zip(*self._levels(student, target), strict=True)
        teacher = batch.teachers[index]
        own = self._layouts_of(None, 'student', self.student_taps, student, batch.student.model)
        other = self._layouts_of(index, 'teacher', self.teacher_taps, target, teacher.model)
        own_size, other_size = size_of(batch.inputs), teacher.input_size(batch.inputs)
        levels, targets = [], []
        for (s, t), s_layout, t_layout in zip(pairs, own, other, strict=True):
            s, t = s_layout.taken(s, own_size), t_layout.taken(t, other_size)
            kind = self._declared.features
            if kind == 'maps' or (kind == 'positions' and _unlike(s, t)):
                s, t = s_layout.as_map(s, own_size), t_layout.as_map(t, other_size)
            levels.append(s)
            targets.append(t)
        return levels, targets

    def pooled(self, index: int, student: Features, target: Features, batch: Batch) -> list[tuple[str, Size | None]]:
        """Return each tap of a teacher with the size to which the term average-pools its map before all else.

        The size is None where the term takes the map whole, or something else than one map. A tap that is compared with
        several of the student's comes once for each.
        """
        if self.resize == 'teacher' or (self.resize == 'smaller' and not self._declared.pools):
            return [(tap, None) for tap in self.teacher_taps]
        levels, targets = self._taken(index, student, target, batch)
        mode = self.adapters.training
        self.adapters.eval()  # their statistics stay as they are
        levels = self._adapted(index, levels, targets)
        self.adapters.train(mode)
        input_size = batch.teachers[index].input_size(batch.inputs)

        def size(tap: str, s: Tensor, t: Tensor) -> Size | None:
            if s.ndim != 4 or t.ndim != 4 or len(target[tap]) > 1:
                return None
            smaller = min(s.shape[-2], t.shape[-2]), min(s.shape[-1], t.shape[-1])
            cell = t[:1, :, : smaller[0], : smaller[1]]
            is_map = self._layouts[index, tap, 0].as_map(cell, input_size) is cell  # not taken for a channels-last one
            return smaller if is_map and smaller != size_of(t) else None

        pairs = list(zip(levels, targets, strict=True))
        return [
            (tap, x)
            for tap in self.teacher_taps
            for x in [size(tap, s, t) for s, t in pairs if any(t is own for own in target[tap])] or [None]
        ]

    def _layouts_of(
        self, index: int | None, side: str, taps: list[str], features: Features, network: nn.Module
    ) -> list[Layout]:
        """Return the layout of every level of a network's taps."""
        keys = [(index, tap, level) for tap in taps for level in range(len(features[tap]))]
        for key in keys:
            if key not in self._layouts:
                self._layouts[key] = layout_of(side, network, key[1], self._tokens[side])
        return self._of_levels(side, taps, [self._layouts[key] for key in keys])

    def _resized(self, levels: list[Tensor], targets: list[Tensor]) -> Sides:
        if any(x.ndim != 4 for x in (*levels, *targets)):
            raise ValueError(
                f"resize='{self.resize}' needs maps (B, C, H, W) of both networks; remove it from the term"
            )
        pairs = list(zip(levels, targets, strict=True))
        if self.resize == 'student':
            return levels, [resized(t, size_of(s)) for s, t in pairs]
        return [resized(s, size_of(t)) for s, t in pairs], targets

    def _levels(self, student: Features, target: Features) -> tuple[list[Tensor], list[Tensor]]:
        levels, targets = self.student_levels(student), self.teacher_levels(target)
        if len(levels) != len(targets):
            raise UserError(
                f"term '{self.name}': the student's taps give {len(levels)} feature(s), the teacher's "
                f'{len(targets)}: give both the same number, or pick levels of each by student_levels and '
                'teacher_levels'
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

    def check_samples(self, data_samples: Sequence[Any] | None) -> None:
        """Check that a batch has what the loss needs of each image; its weight may be 0 for long.

        A softmax over classes of which an image has several is logged.

        Raises:
            UserError: An image lacks it.
        """
        if self._declared.needs_labels:
            self.labels(data_samples)
        if self.needs_indices:
            self.indices(data_samples)
        if self._declared.features == 'logits' and not getattr(self._declared, 'use_sigmoid', False):
            note_several_classes(data_samples, self._who, 'KDLoss(use_sigmoid=True)')

    def labels(self, data_samples: Sequence[Any] | None) -> Tensor:
        """Return the class labels (N,) of the images, see :func:`~kd_plugins.distillation.samples.labels_of`."""
        return labels_of(data_samples, self._who)

    def set_num_samples(self, num_samples: int) -> None:
        """Give the number of images of the training set to a loss that needs their indices.

        Raises:
            UserError: The loss was given a smaller number.
        """
        if not self.needs_indices:
            return
        losses: list[Any] = [self.loss, *self.copies]
        for loss in losses:
            if loss.num_samples is None:
                loss.set_num_samples(num_samples)
            elif loss.num_samples < num_samples:
                raise UserError(
                    f"term '{self.name}': num_samples={loss.num_samples}, but the training set has {num_samples} "
                    f'images: give num_samples={num_samples}, or leave it out'
                )

    def indices(self, data_samples: Sequence[Any] | None) -> list[int]:
        """Return the indices of the images, see :func:`~kd_plugins.distillation.samples.indices_of`."""
        return indices_of(data_samples, self._declared.num_samples, self._who)

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
            reason = ' '.join(str(error).split()) + self._what_helps(student, targets)
            raise UserError(f'{self.describe(student, targets)}: shape mismatch: {reason}') from error

    def _what_helps(self, student: Features, targets: Sequence[Features]) -> str:
        """Return what helps a loss from outside of this package, whose messages know no options of a term."""
        if type(self.loss).__module__.partition('.')[0] == 'kd_plugins':
            return ''
        s, t = self.student_levels(student)[0], self.teacher_levels(targets[self.teachers[0]])[0]
        if {s.ndim, t.ndim} == {3, 4} and self._declared.features == 'any':
            return (
                '; one network gives maps and the other tokens, which become maps where the class of the loss says '
                "features = 'positions', or the term teacher_tokens=dict(...) (or student_tokens)"
            )
        if 4 in (s.ndim, t.ndim) and self.resize == 'smaller':
            return "; for maps of one size, give the term resize='student' or resize='teacher'"
        return ''

    def zero_loss(self) -> Tensor | float:
        """Return 0, with a gradient of 0 for the term's parameters, so that data-parallel finds none unused."""
        return sum(0.0 * p.sum() for p in self.parameters())


def _unlike(student: Tensor, teacher: Tensor) -> bool:
    """Return whether features cannot be compared position by position before both are maps."""
    ranks = {student.ndim, teacher.ndim}
    return ranks in ({4}, {3, 4}) or (ranks == {3} and student.shape[1] != teacher.shape[1])


def mean_over_teachers(losses: list[Tensor]) -> Tensor:
    """Return the mean over the teachers; for one teacher, its loss itself."""
    return losses[0] if len(losses) == 1 else torch.stack(losses).mean()
