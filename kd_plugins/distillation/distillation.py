"""The core that the hook and the models share: teachers and terms, the dry run, the losses of a step."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

import torch
import torch.distributed as dist
from mmengine.logging import MessageHub
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kd_plugins.distillation.recorder import Features, Recorder
from kd_plugins.distillation.teacher import Teacher, build_teacher
from kd_plugins.distillation.term import Term, mean_over_teachers
from kd_plugins.errors import UserError
from kd_plugins.registry import checked_arguments
from kd_plugins.utils.names import first
from kd_plugins.utils.random import preserved_rng


def _labels(term: Term, data_samples: Sequence[Any] | None) -> Tensor:
    """Return the classes (N,) of images that have one each."""
    labels = []
    for sample in [None] if data_samples is None else data_samples:
        label, mixed = getattr(sample, 'gt_label', None), getattr(sample, 'gt_score', None) is not None
        if mixed or not isinstance(label, Tensor) or label.numel() != 1:
            raise UserError(
                f"term '{term.name}': {type(term.loss).__name__} needs images of one class each, a "
                f'gt_label of one number in each data sample, got {"a gt_score" if mixed else label}: use '
                'it for single-label classification, without mixing images'
            )
        labels.append(label.flatten())
    return torch.cat(labels)


def check_finite(losses: Mapping[str, Any]) -> None:
    """Stop where a loss is not finite: under data-parallel every process, so that none waits for one that has stopped.

    Raises:
        UserError: With the names of such losses, in this process or another.
    """
    losses = {name: value for name, value in losses.items() if 'loss' in name}  # as mmengine sums them
    if not losses:
        return
    values = torch.stack(
        [
            sum(x.detach().float().mean() for x in ([loss] if isinstance(loss, Tensor) else loss))
            for loss in losses.values()
        ]
    )
    bad = (~values.isfinite()).float()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(bad, dist.ReduceOp.MAX)
    if bad.any():
        told = [
            f'{name} is {value}' if not isfinite(value) else f'{name} is not finite in another process'
            for name, value, flag in zip(losses, values.tolist(), bad.tolist(), strict=True)
            if flag
        ]
        iteration = MessageHub.get_current_instance().get_info('iter', 0) + 1
        raise UserError(
            f'{", ".join(told)} at iteration {iteration}: training stops, the last good checkpoint is '
            "kept; lower the term's weight or the learning rate"
        )


def _check_data_parallel(losses: Iterable[Tensor]) -> None:
    """Look for parameters that these losses do not reach, where data-parallel takes that for an error."""
    wrapper = DistributedDataParallel._get_active_ddp_module()
    if wrapper is None or wrapper.find_unused_parameters or wrapper.static_graph:
        return
    nodes, seen = [loss.grad_fn for loss in losses], {None}
    while nodes:
        if (node := nodes.pop()) not in seen:
            seen.add(node)
            nodes += [other for other, _ in node.next_functions]
    reached = {getattr(node, 'variable', None) for node in seen}
    if missed := [name for name, p in wrapper.module.named_parameters() if p.requires_grad and p not in reached]:
        raise UserError(
            f'with task=False no gradient goes to {first(missed)}, which data-parallel takes for an error: '
            'set find_unused_parameters=True in the config'
        )


def checked_inputs(inputs: Any) -> Any:
    """Return a batch's images.

    Raises:
        UserError: They are neither a tensor nor, before the preprocessor has stacked them, a list of single images.
    """
    single = isinstance(inputs, Sequence) and all(isinstance(x, Tensor) and x.dim() == 3 for x in inputs)
    if not isinstance(inputs, Tensor) and not single:
        names = f' of {", ".join(map(str, inputs))}' if isinstance(inputs, Mapping) else ''
        raise UserError(
            'distillation takes batches dict(inputs=..., data_samples=...) of one view an image, got a '
            f'{type(inputs).__name__}{names} for its inputs: semi- or self-supervised data, with several '
            'views, and plain tuples do not fit'
        )
    return inputs


def _records(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) > 0 and all(isinstance(x, Mapping) for x in value)


class Distillation(nn.Module):
    """Teachers, terms and adapters, bound to a student.

    As a module it holds the adapters and what a loss trains. The teachers follow ``.to()`` and appear nowhere else.

    Args:
        student: The network to train; it is listened to, not changed.
        teacher: Record for :func:`~kd_plugins.distillation.teacher.build_teacher`, or a list of such records; with
            ``cache='folder'`` its answers are kept, see :class:`~kd_plugins.distillation.cache.AnswerCache`, with
            ``bf16=True`` it answers in bfloat16, see :class:`~kd_plugins.distillation.teacher.Teacher`.
        terms: Records for :class:`Term`.
        task: Whether the task's losses train. If not, they are computed and logged still, but give no gradient.

    Raises:
        UserError: Something in the records is wrong; the message names it.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        terms: Sequence[Mapping[str, Any]],
        task: bool = True,
    ) -> None:
        super().__init__()
        self.task = task
        arguments = inspect.signature(student.forward).parameters
        if any(name not in arguments for name in ('inputs', 'data_samples', 'mode')) and not any(
            x.kind is x.VAR_KEYWORD for x in arguments.values()
        ):
            raise UserError(
                f'{type(student).__name__} cannot be distilled: its forward takes '
                f"({', '.join(arguments)}), expected (inputs, data_samples, mode), with the modes 'loss' "
                "and 'tensor', as mmpretrain's and mmdet's models have"
            )
        self.reached = False  # whether a training step has shown that every term reaches the student
        self._covered = False  # and, where data-parallel needs that, that together they reach all of it
        if not isinstance(task, bool):
            raise UserError(f'task must be True or False, got {task!r}')
        records = [teacher] if isinstance(teacher, Mapping) else teacher
        if not _records(records):
            raise UserError(
                'a distillation needs a teacher: give a record, dict(config=..., checkpoint=...), or a '
                f'list of such records, got {teacher!r}'
            )
        if not _records(terms):
            raise UserError(
                'a distillation needs terms: give a list of records, [dict(name=..., loss=dict(type=...), '
                f'student=..., teacher=...)], got {terms!r}'
            )
        with preserved_rng():
            built = []
            for number, record in enumerate(terms, 1):
                checked_arguments(f"term '{record.get('name', f'number {number}')}'", Term, record)
                built.append(Term(**record))
                built[-1].choose_teachers(len(records))
            self.terms = nn.ModuleList(built)
            names = [term.name for term in built]
            for name in names:
                if names.count(name) > 1:
                    raise UserError(f"two terms are named '{name}': give each its own name")
            self.recorder = Recorder(student, [tap for term in built for tap in term.student_taps])
            self.teachers = [
                self._build_teacher(number, record, len(records) > 1) for number, record in enumerate(records)
            ]

    def _build_teacher(self, number: int, record: Mapping[str, Any], several: bool) -> Teacher:
        whose = f'teacher {number}' if several else 'the teacher'
        taps = [tap for term in self.terms if number in term.of for tap in term.teacher_taps]
        if several and not taps:
            raise UserError(f'{whose}: no term learns from it: add its place to an of=[...], or leave it out')
        record = dict(record)
        ways = {name: record.pop(name) for name in ('cache', 'bf16') if name in record}
        checked_arguments(whose, build_teacher, record)
        try:
            return Teacher(
                build_teacher(**record), taps, getattr(self.recorder.model, 'data_preprocessor', None), **ways
            )
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

    def dry_run(self, student: nn.Module, inputs: Tensor, data_samples: Sequence[Any] | None) -> list[str]:
        """Run the networks once, build the adapters, check every term, and describe each in a line.

        Nothing that training depends on changes: no BatchNorm statistic, no random state.

        Raises:
            UserError: A tap does not run, or features cannot meet; the message holds both shapes.
        """
        return self.prepare(*self.probe(student, inputs, data_samples))

    @torch.no_grad()
    def probe(
        self,
        student: nn.Module,
        inputs: Tensor,
        data_samples: Sequence[Any] | None,
    ) -> tuple[Features, list[Features]]:
        """Return what the taps of the student and of each teacher put out; the first half of :meth:`dry_run`."""
        modes = {module: module.training for module in student.modules()}
        with preserved_rng():
            student.eval()
            with self.recorder.probing() as features:
                student(inputs, data_samples, mode='tensor')
            for module, mode in modes.items():
                module.training = mode
            return features, [teacher.probe(inputs, data_samples) for teacher in self.teachers]

    @torch.no_grad()
    def prepare(self, features: Features, targets: Sequence[Features]) -> list[str]:
        """Build the adapters for these features, and check and describe every term; its second half."""
        for whose, found in (('student', features), *(('teacher', target) for target in targets)):
            for tap, levels in found.items():
                if not levels:
                    raise UserError(
                        f"the {whose}'s module '{tap}' puts out no tensor in a forward pass: tap another one"
                    )
        lines = []
        with preserved_rng():
            for term in self.terms:
                term.build_adapters(features, targets)
                term.to(next(x.device for levels in features.values() for x in levels))
                with term.meeting(features, targets):
                    term(features, targets)
                lines.append(term.describe(features, targets))
        return lines

    def ask(self, inputs: Tensor, data_samples: Sequence[Any] | None) -> list[Features]:
        """Return what each teacher's taps put out for a batch; nothing of one all of whose terms have weight 0.

        Best before the student runs: what the teacher's layers need meanwhile is then free again for the student's,
        instead of lying beside what these keep for the backward pass.
        """
        checked_inputs(inputs)
        asked = {number for term in self.terms if term.current_weight() for number in term.of}
        return [
            teacher(inputs, data_samples) if number in asked else {} for number, teacher in enumerate(self.teachers)
        ]

    def forward(
        self,
        features: Features,
        targets: Sequence[Features],
        inputs: Tensor,
        data_samples: Sequence[Any] | None,
    ) -> dict[str, Tensor]:
        """Return the weighted losses of a step, under ``loss_<term>``; a term whose weight is 0 is not computed.

        Args:
            features: What the student's taps put out for this batch.
            targets: What the teachers' did, from :meth:`ask`.
            inputs: The batch as the student's preprocessor returned it.
            data_samples: Its annotations.

        Raises:
            UserError: A loss is not finite, or a term gives the student no gradient.
        """
        if not self.reached and torch.is_grad_enabled():
            self._check_gradient(features)
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
        check_finite(losses)
        return losses

    def _check_gradient(self, features: Features) -> None:
        """Look for terms that would show a loss and train nothing; that some levels are frozen is common."""
        for term in self.terms:
            found = term.of_student(features)
            if term.may_weigh() and found and not any(x.requires_grad for x in found):
                raise UserError(
                    f"term '{term.name}': no gradient goes from {'+'.join(term.student_taps)} into the student, so "
                    'that it would train nothing: all up to there is frozen, or lies inside a block under activation '
                    'checkpointing (with_cp=True); tap the whole block or a later module, or leave that out'
                )
        self.reached = True

    def _on_adversaries(
        self,
        term: Term,
        features: Features,
        targets: Sequence[Features],
        inputs: Tensor,
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
        if (
            dist.is_available()
            and dist.is_initialized()
            and dist.get_world_size() > 1
            and any(isinstance(module, nn.SyncBatchNorm) for module in student.modules())
        ):
            raise UserError(
                f"term '{term.name}': {type(term.loss).__name__} runs the student on as many images as a "
                'process has found, which SyncBatchNorm cannot: leave sync_bn out'
            )
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

            try:
                made = term.loss.adversaries(inputs[chosen], labels[chosen], other[chosen], logits)
            except ValueError as error:  # of its options, which the images do not fit
                raise UserError(f"term '{term.name}': {error}") from error
            with torch.no_grad():
                target = self.teachers[number].answer(made, samples)
            with self.recorder.recording() as found:
                student(made, samples, mode='tensor')
            losses.append(term.against(number, found, target))
        return mean_over_teachers(losses)

    def add_to(
        self,
        losses: dict[str, Any],
        features: Features,
        targets: Sequence[Features],
        inputs: Tensor,
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
                raise UserError(
                    'with task=False the terms alone train, but the weights of all are 0 now: give one a weight'
                )
            if not self._covered:
                _check_data_parallel(own.values())
                self._covered = True
            losses = {
                name: value.detach() if isinstance(value, Tensor) else [x.detach() for x in value]
                for name, value in losses.items()
            }
        return losses | own
