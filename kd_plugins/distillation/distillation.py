"""The core that the hook and the models share: teachers and terms, the dry run, the losses of a step."""

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from math import isfinite
from typing import Any, Protocol

import torch
from mmengine.dist import all_gather_object, all_reduce
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kd_plugins.distillation.adversarial import AdversarialTerm
from kd_plugins.distillation.crosskd import CrossKDTerm
from kd_plugins.distillation.first_values import FirstValues
from kd_plugins.distillation.recorder import Features, Recorder
from kd_plugins.distillation.schedule import running
from kd_plugins.distillation.sources import build_teacher, source_and_options
from kd_plugins.distillation.teacher import Teacher
from kd_plugins.distillation.term import Batch, Term
from kd_plugins.errors import UserError
from kd_plugins.losses import AdversarialLoss, CrossKDLoss
from kd_plugins.registry import build_part, check_arguments
from kd_plugins.utils.losses import scalar_of
from kd_plugins.utils.names import brief, did_you_mean, first
from kd_plugins.utils.random import preserved_rng

DIVERGED = 'training stops, the last good checkpoint is kept'
_TASKS = ('train', 'log', 'off')
_KINDS: dict[type, type[Term]] = {AdversarialLoss: AdversarialTerm, CrossKDLoss: CrossKDTerm}


def check_finite(losses: Mapping[str, Any]) -> None:
    """Raise where a loss is not finite; under data-parallel in every process, so that none waits for another.

    Raises:
        UserError: A loss is not finite in this process or another; the message names it.
    """
    losses = {name: value for name, value in losses.items() if 'loss' in name}  # those that mmengine sums
    values = torch.stack([scalar_of(loss).detach() for loss in losses.values()] or [torch.zeros(())])
    bad = (~values.isfinite()).any().float()  # processes may have unlike losses, as mmdet's GridRoIHead without boxes
    all_reduce(bad, 'max')
    if bad:
        own = {name: value for name, value in zip(losses, values.tolist(), strict=False) if not isfinite(value)}
        others = {name for names in all_gather_object([*own]) for name in names} - own.keys()
        bad_losses = [f'{name} is {value}' for name, value in own.items()]
        bad_losses += [f'{name} is not finite in another process' for name in sorted(others)]
        hub = running()
        at = '' if hub is None else f' at iteration {hub.get_info("iter", 0) + 1}'
        raise UserError(f"{', '.join(bad_losses)}{at}: {DIVERGED}; lower the term's weight or the learning rate")


def _check_data_parallel(losses: Iterable[Tensor], task: str) -> None:
    """Raise where a parameter gets no gradient from these losses and data-parallel would fail."""
    wrapper = DistributedDataParallel._get_active_ddp_module()
    if wrapper is None or wrapper.find_unused_parameters or wrapper.static_graph:
        return
    nodes, seen = [loss.grad_fn for loss in losses], set()
    while nodes:
        if (node := nodes.pop()) is not None and node not in seen:
            seen.add(node)
            nodes += [other for other, _ in node.next_functions]
    reached = {getattr(node, 'variable', None) for node in seen}
    if missed := [name for name, p in wrapper.module.named_parameters() if p.requires_grad and p not in reached]:
        raise UserError(
            f"with task='{task}' no gradient reaches {first(missed)}, which data-parallel does not allow: "
            'set find_unused_parameters=True in the config'
        )


def check_inputs(inputs: Any) -> None:
    """Check the images of a batch.

    Raises:
        UserError: They are neither a tensor nor, before the preprocessor stacks them, a list of single images.
    """
    single = isinstance(inputs, Sequence) and all(isinstance(x, Tensor) and x.dim() == 3 for x in inputs)
    if not isinstance(inputs, Tensor) and not single:
        names = f' of {", ".join(map(str, inputs))}' if isinstance(inputs, Mapping) else ''
        raise UserError(
            'distillation needs batches dict(inputs=..., data_samples=...) with one view per image, got a '
            f'{type(inputs).__name__}{names} as inputs: data with several views per image (semi- or '
            'self-supervised) and plain tuples are not supported'
        )


def _are_dicts(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) > 0 and all(isinstance(x, Mapping) for x in value)


class Observer(Protocol):
    """What looks at every training step, as :class:`kd_plugins.hooks.WatchHook` does."""

    def during_teachers(self) -> AbstractContextManager[None]:
        """Return a block that the teachers run in."""

    def before_backward(self, losses: Mapping[str, Any]) -> None:
        """Look at all losses of the step, whose graph is still there."""


class Distillation(nn.Module):
    """Teachers, terms and adapters of a student, and the losses of a training step.

    As a module it holds what trains: the adapters and the parameters of losses. The teachers follow ``.to()`` but are
    no submodules.

    Args:
        student: Network to train; it is not changed here.
        teacher: Config dict of a teacher, ``dict(config=..., checkpoint=...)``: the arguments of
            :func:`~kd_plugins.distillation.sources.build_teacher` and the options ``cache``, ``bf16`` and
            ``size`` of :class:`~kd_plugins.distillation.teacher.Teacher`. Or a list of such dicts.
        terms: Config dicts of terms: the arguments of :class:`~kd_plugins.distillation.term.Term`.
        task: What becomes of the task's losses. ``'train'``: they train the student, beside the terms. ``'log'``: they
            are computed and logged, and give no gradient. ``'off'``: they are never computed. The student then runs in
            mode ``tensor``, and no further than to its last tap, so that it needs no labels and no head. True means
            ``'train'`` and False ``'log'``.

    Raises:
        UserError: An option in the config dicts is wrong; the message names it. Or the student is of several networks,
            which learn from each other by the losses that ``task='off'`` leaves out.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        terms: Sequence[Mapping[str, Any]],
        task: str | bool = 'train',
    ) -> None:
        super().__init__()
        arguments = inspect.signature(student.forward).parameters
        if any(name not in arguments for name in ('inputs', 'data_samples', 'mode')) and not any(
            x.kind is x.VAR_KEYWORD for x in arguments.values()
        ):
            raise UserError(
                f'{type(student).__name__} cannot be distilled: its forward takes '
                f"({', '.join(arguments)}), expected (inputs, data_samples, mode), with the modes 'loss' "
                "and 'tensor', as mmpretrain's and mmdet's models have"
            )
        if isinstance(task, bool):
            task = 'train' if task else 'log'
        if task not in _TASKS:
            raise UserError(f'task is {task!r}: {did_you_mean(str(task), _TASKS)}')
        self.task = task
        if self.task != 'off' and getattr(student, 'head', True) is None:
            raise UserError(
                f"{type(student).__name__} has no head, and so no loss of its own: give it a head, or task='off', "
                'which trains on the terms alone'
            )
        if self.task == 'off' and hasattr(student, 'deployable'):
            raise UserError(
                f"{type(student).__name__}: its networks learn from each other by the losses that task='off' leaves "
                "out: give a plain network as the student, or task='train'"
            )
        self.gradients_checked = False  # whether every term gives the student a gradient
        self.observer: Observer | None = None
        self._coverage_checked = False  # whether all terms together give every parameter one, see _check_data_parallel
        configs = [teacher] if isinstance(teacher, Mapping) else teacher
        if not _are_dicts(configs):
            raise UserError(
                'a distillation needs a teacher: give a config dict, dict(config=..., checkpoint=...), or a '
                f'list of such dicts, got {brief(teacher)}'
            )
        if not _are_dicts(terms):
            raise UserError(
                'a distillation needs terms: give a list of config dicts, [dict(name=..., loss=dict(type=...), '
                f'student=..., teacher=...)], got {brief(terms)}'
            )
        with preserved_rng():
            built = nn.ModuleList(build_terms(terms, len(configs)))
            self.terms: Sequence[Term] = built  # type: ignore[assignment]  # ModuleList is not generic
            self._first_values = FirstValues(self.terms)
            taps = [tap for term in self.terms for tap in term.taps_in('student', student)]
            self.recorder = Recorder(student, taps, role='student')
            self.teacher_configs = [dict(config) for config in configs]
            self.teachers = [
                self._build_teacher(index, config, len(configs) > 1) for index, config in enumerate(configs)
            ]

    def _build_teacher(self, index: int, config: Mapping[str, Any], several: bool) -> Teacher:
        which = f'teacher {index}' if several else 'the teacher'
        terms = [term for term in self.terms if index in term.teachers]
        if several and not terms:
            raise UserError(f'{which}: no term uses it: add its index to the teachers=[...] of a term, or remove it')
        source, options = source_and_options(config)
        check_arguments(which, build_teacher, source)
        try:
            preprocessor = getattr(self.recorder.model, 'data_preprocessor', None)
            network = build_teacher(**source)
            taps = [tap for term in terms for tap in term.taps_in('teacher', network)]
            return Teacher(network, taps, preprocessor, **options)
        except UserError as error:
            if not several:
                raise
            raise UserError(f'{which}: {error}; teachers=[...] in a term restricts it to some teachers') from error

    @property
    def teacher(self) -> Teacher:
        """The first teacher."""
        return self.teachers[0]

    def __deepcopy__(self, memo: dict[int, Any]) -> 'Distillation':
        """Return a copy that shares the losses' buffers: an average (EMA) would copy CRD's banks in every step."""
        memo |= {
            id(buffer): buffer for term in self.terms for loss in (term.loss, term.copies) for buffer in loss.buffers()
        }
        copied = memo[id(self)] = type(self).__new__(type(self))
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied

    def _apply(self, fn: Any, recurse: bool = True) -> 'Distillation':
        for teacher in self.teachers:
            teacher.apply(fn)
        return super()._apply(fn, recurse)

    def set_num_samples(self, num_samples: int) -> None:
        """Give the number of images of the training set to the terms whose losses need their indices.

        Raises:
            UserError: A loss was given a smaller number.
        """
        for term in self.terms:
            term.set_num_samples(num_samples)

    def dry_run(self, student: nn.Module, inputs: Tensor, data_samples: Sequence[Any] | None) -> list[str]:
        """Run the networks once, build the adapters, check every term, and return a line that describes each.

        Buffers, as BatchNorm statistics, and random states stay as they were.

        Raises:
            UserError: A tap does not run, or the shapes of a term's features do not match; the message names both.
        """
        return self.prepare(*self.probe(student, inputs, data_samples), inputs)

    @torch.no_grad()
    def probe(
        self,
        student: nn.Module,
        inputs: Tensor,
        data_samples: Sequence[Any] | None,
    ) -> tuple[Features, list[Features]]:
        """Return the features at the taps of the student and of each teacher; the first half of :meth:`dry_run`."""
        modes = {module: module.training for module in student.modules()}

        def probed(mode: str) -> Features:
            with self.recorder.probing(len(inputs)) as features:
                student(inputs, data_samples, mode=mode)
            return features

        with preserved_rng():
            student.eval()
            features = probed('tensor')
            if self.task != 'off' and data_samples is not None and not all(features.values()):
                buffers = [(x, x.clone()) for x in student.buffers()]  # a loss may count classes there (Seesaw)
                with suppress(Exception):  # as of images without annotations; then the tap is what is wrong
                    features = probed('loss')  # in which alone the head of a retriever runs
                for x, value in buffers:
                    x.copy_(value)
            for module, mode in modes.items():
                module.training = mode
            return features, [teacher.probe(inputs, data_samples) for teacher in self.teachers]

    @torch.no_grad()
    def prepare(self, features: Features, targets: Sequence[Features], inputs: Tensor) -> list[str]:
        """Build the adapters for these features, check and describe every term; the second half of :meth:`dry_run`.

        Args:
            features: Features at the student's taps.
            targets: Features at the teachers' taps.
            inputs: Images that gave them, as the student's preprocessor returned them.

        Raises:
            UserError: A tap outputs no tensor, or the shapes of a term's features do not match.
        """
        recorders = self.recorder, *(teacher.recorder for teacher in self.teachers)
        for recorder, recorded in zip(recorders, (features, *targets), strict=True):
            for tap, levels in recorded.items():
                if not levels:
                    inner = f'{tap}.conv_seg'  # mmseg calls the forward() of its heads itself, past all hooks
                    raise UserError(
                        f"the {'student' if recorder is self.recorder else 'teacher'}'s module '{tap}' outputs no "
                        'tensor in a forward pass: tap '
                        f'{repr(inner) if inner in dict(recorder.model.named_modules()) else "another one"}'
                    )
        with preserved_rng(), self._explained(features, targets, len(inputs)):
            batch = Batch(inputs, None, self.recorder, self.teachers)
            lines = [term.prepare(features, targets, batch) for term in self.terms]
            for index, teacher in enumerate(self.teachers):
                if teacher.caches:
                    terms = [term for term in self.terms if index in term.teachers]
                    pairs = {x for term in terms for x in term.pooled(index, features, targets[index], batch)}
                    taps = Counter(tap for tap, _ in pairs)  # pooled to one size, by all terms
                    teacher.pool({tap: size for tap, size in pairs if size and taps[tap] == 1}, inputs)
            return lines

    @contextmanager
    def _explained(self, student: Features, targets: Sequence[Features], images: int) -> Iterator[None]:
        """Add to an error of a term inside the block what was odd about the passes that gave the features."""
        try:
            yield
        except UserError as error:
            pairs = zip((self.recorder, *(x.recorder for x in self.teachers)), (student, *targets), strict=True)
            notes = [note for recorder, features in pairs for note in recorder.irregularities(features, images)]
            if not notes:
                raise
            raise UserError(f'{error}; {"; ".join(notes)}') from error

    def losses(
        self, run_student: Callable[..., Any], inputs: Tensor, data_samples: Sequence[Any] | None
    ) -> dict[str, Any]:
        """Return all losses of a training step, those of the task (none with ``task='off'``) and those of the terms.

        The teachers run first: the memory of their activations is then free again before the student's activations are
        kept for the backward pass.

        Args:
            run_student: Runs the student on the batch: called once, with the ``mode`` of its forward.
            inputs: Images as the student's preprocessor returned them.
            data_samples: Annotations of the images.

        Raises:
            UserError: The batch has several views per image, a loss that trains is not finite, none has a gradient, or
                a teacher is for images of another scale.
        """
        if not self.gradients_checked:  # in the first step, of images of the data
            check_inputs(inputs)
            for teacher in self.teachers:
                teacher.check_range(inputs)
        with nullcontext() if self.observer is None else self.observer.during_teachers():
            targets = self.teacher_features(inputs, data_samples)
        task: dict[str, Any] = {}
        # Layers after the last tap would get no gradient, and a detector's need annotations.
        with self.recorder.recording(stop=self.task == 'off') as features:
            if self.task == 'off':
                run_student(mode='tensor')
            else:
                task = run_student(mode='loss')
        with self._explained(features, targets, len(inputs)):
            terms = self(features, targets, inputs, data_samples)
        losses = self.with_task_losses(task, terms)
        check_finite(losses if self.task == 'train' else terms)
        self._first_values(losses)
        if self.observer is not None:
            self.observer.before_backward(losses)
        return losses

    def teacher_features(self, inputs: Tensor, data_samples: Sequence[Any] | None) -> list[Features]:
        """Return the features at each teacher's taps for a batch, or ``{}`` where all of its terms have weight 0."""
        check_inputs(inputs)
        needed = {index for term in self.terms if term.current_weight() for index in term.teachers}
        return [teacher(inputs, data_samples) if index in needed else {} for index, teacher in enumerate(self.teachers)]

    def forward(
        self,
        features: Features,
        targets: Sequence[Features],
        inputs: Tensor,
        data_samples: Sequence[Any] | None,
    ) -> dict[str, Tensor]:
        """Return the weighted losses of the terms, under ``loss_<term>``; a term of weight 0 is not computed.

        Args:
            features: Features at the student's taps.
            targets: Features at the teachers' taps, from :meth:`teacher_features`.
            inputs: Images as the student's preprocessor returned them.
            data_samples: Annotations of the images.

        Raises:
            UserError: A term gives the student no gradient, or an image lacks what a loss needs.
        """
        if not self.gradients_checked and torch.is_grad_enabled():
            for term in self.terms:
                if term.is_ever_active():
                    term.check_samples(data_samples)
            self._check_gradients(features)
        batch = Batch(inputs, data_samples, self.recorder, self.teachers)
        losses = {}
        for term in self.terms:
            weight = term.current_weight()
            losses[f'loss_{term.name}'] = (
                weight * term(features, targets, batch) if weight else inputs.new_zeros(()) + term.zero_loss()
            )
        return losses

    def _check_gradients(self, features: Features) -> None:
        """Raise where a term gives the student no gradient; some of its levels may be frozen."""

        def trains(tap: str) -> bool:
            return any(p.requires_grad for p in self.recorder.model.get_submodule(tap).parameters())

        for term in self.terms:
            if not term.is_ever_active():
                continue
            levels = term.student_levels(features)
            taken = {tap: [x for x in features[tap] if any(x is y for y in levels)] for tap in term.student_taps}
            flows = any(x.requires_grad for x in levels)
            dead = [tap for tap, own in taken.items() if own and not any(x.requires_grad for x in own)]
            if flows:
                dead = [tap for tap in dead if trains(tap)]
            if dead:
                raise UserError(
                    f"term '{term.name}': no gradient flows from {'+'.join(dead)} into the student, so "
                    'the term would train nothing: all layers up to it are frozen, or it is inside a block with '
                    'activation checkpointing (with_cp=True); tap the whole block or a later module, or turn '
                    'checkpointing off'
                )
        self.gradients_checked = True

    def with_task_losses(self, task: dict[str, Any], terms: dict[str, Tensor]) -> dict[str, Any]:
        """Return the task's losses and the terms' in one dictionary; with ``task='log'`` the former without gradient.

        Raises:
            UserError: A name is used twice, or no loss has a gradient.
        """
        for name in terms:
            if name in task:
                raise UserError(f"the student already has a '{name}': rename the term '{name.removeprefix('loss_')}'")
        if self.task != 'train':
            trains = torch.is_grad_enabled()  # else it is a loss in validation
            if trains and not any(loss.requires_grad for loss in terms.values()):
                raise UserError(
                    f"with task='{self.task}' only the terms train the student, but all their weights are 0 in this "
                    'iteration: give one a weight above 0'
                )
            if trains and not self._coverage_checked:
                _check_data_parallel(terms.values(), self.task)
                self._coverage_checked = True
            task = {
                name: value.detach() if isinstance(value, Tensor) else [x.detach() for x in value]
                for name, value in task.items()
            }
        return task | terms


def build_terms(configs: Sequence[Mapping[str, Any]], teachers: int) -> list[Term]:
    """Build the terms of a distillation from that many teachers.

    Raises:
        UserError: A term is wrong, has the name of another one, or names a teacher that there is not.
    """
    terms = [build_term(index, config) for index, config in enumerate(configs)]
    for term in terms:
        term.choose_teachers(teachers)
    names = [term.name for term in terms]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two terms are named '{name}': give each its own name")
    return terms


def build_term(index: int, config: Mapping[str, Any]) -> Term:
    """Build a term from its config dict.

    Args:
        index: Index of the term, for messages about one without a name.
        config: Config dict of the term.

    Raises:
        UserError: An option is missing, misspelt or out of range.
    """
    name = f"term '{config.get('name', f'number {index + 1}')}'"
    options = dict(config)
    check_arguments(name, Term, options)
    options['loss'] = build_part(f'the loss of {name}', options['loss'])
    kind = next((kind for loss, kind in _KINDS.items() if isinstance(options['loss'], loss)), Term)
    return kind(**options)
