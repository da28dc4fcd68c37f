"""Distillation for any stock config, with one entry in ``custom_hooks``."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial, wraps
from types import MethodType
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.dist import all_reduce, broadcast, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper, OptimWrapperDict
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor, nn
from torch.utils.data import ConcatDataset

from kd_plugins.distillation.distillation import Distillation, check_inputs
from kd_plugins.errors import UserError
from kd_plugins.registry import HOOKS
from kd_plugins.utils.models import to_channels_last, unwrapped
from kd_plugins.utils.random import preserved_rng

_CONSTRUCTOR = DefaultOptimWrapperConstructor.__name__


@HOOKS.register_module()
class DistillationHook(Hook):
    """Adds distillation terms to the losses of a stock model.

    The model stays the stock model: its checkpoint has the stock student's keys. Trainable adapters and parameters of
    losses join the optimiser as one more parameter group, with its base learning rate and its schedule; where the
    config has a ``paramwise_cfg``, as one for each parameter, under the names that they have in a ``Distiller``. Under
    data-parallel their gradients are averaged over processes. A checkpoint holds them under ``distillation``, beside
    the weights: ``--resume`` restores them, ``load_from`` does not.

    Args:
        teacher: ``dict(config=..., checkpoint=...)``, see :func:`~kd_plugins.distillation.sources.build_teacher`;
            or a list of them.
        terms: Config dicts of terms, see :class:`~kd_plugins.distillation.term.Term`.
        task: What becomes of the task's losses. ``'train'``: they train the student, beside the terms. ``'log'`` trains
            on the terms alone, as the first stage of FitNet and FSP does: the task's losses are computed and logged,
            but give no gradient. ``'off'`` never computes them: the student runs in mode ``tensor``, no further than to
            its last tap, so that it needs no labels and no head, and may be a backbone alone,
            ``dict(type='mmpretrain.ImageClassifier', backbone=...)``. Without ``'train'``, layers that no term reaches
            get no gradient, not even 0, so that neither weight decay nor momentum changes them; with ``'log'`` their
            BatchNorm statistics are still updated. With such layers, data-parallel needs
            ``find_unused_parameters=True`` in the config. True means ``'train'`` and False ``'log'``.

    Raises:
        UserError: Before training: a dry run on the first images finds an error in a term; in the first step: the
            student's forward has not run.
    """

    def __init__(
        self,
        teacher: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        terms: Sequence[Mapping[str, Any]],
        task: str | bool = 'train',
    ) -> None:
        self._teacher, self._terms, self._task = teacher, terms, task
        self.distillation: Distillation | None = None
        self._own_forward: Callable[..., Any] | None = None  # the student's, where it is no method of its class
        self._wraps = False

    def before_run(self, runner: Runner) -> None:
        """Build the teacher and the adapters, and check every term."""
        if not isinstance(runner.optim_wrapper, OptimWrapper) or self.distillation is not None:
            return  # in val() or test(), without or after train()
        if isinstance(runner.optim_wrapper, OptimWrapperDict):
            raise UserError('DistillationHook needs one optimiser, but this config has several: use a single one')
        if sum(isinstance(hook, DistillationHook) for hook in runner.hooks) > 1:
            raise UserError(
                'a run has one DistillationHook, but this config has several: put all terms into one, with '
                'teacher=[dict(...), dict(...)] for several teachers and teachers=[...] in a term for some of them'
            )
        student: BaseModel = unwrapped(runner.model)
        loader = runner.train_dataloader
        with preserved_rng():
            dataset = _copied(loader.dataset)
            batch = loader.collate_fn([dataset[0], dataset[min(1, len(dataset) - 1)]])
            check_inputs(batch.get('inputs') if isinstance(batch, Mapping) else batch)
        self.distillation = Distillation(student, self._teacher, self._terms, self._task)
        self.distillation.to(next(student.parameters()).device)
        if any(p.dim() == 4 and not p.is_contiguous() for p in student.parameters()):
            to_channels_last(self.distillation)
        give_num_samples(self.distillation, loader.dataset)
        with preserved_rng():
            try:
                batch = student.data_preprocessor(batch, False)
            except AssertionError:  # mmseg's pads images of several sizes in training alone
                batch = student.data_preprocessor(batch, True)
        try:
            lines = self.distillation.dry_run(student, batch['inputs'], batch.get('data_samples'))
        except AssertionError as error:  # as of mmdet's guided anchors, which predict for one image at a time
            with suppress(UserError):  # where it fails on one as well, its own error says why
                samples = batch.get('data_samples')
                self.distillation.probe(student, batch['inputs'][:1], None if samples is None else samples[:1])
            reason = ' '.join(str(error).split())
            raise UserError(
                f'DistillationHook: {type(student).__name__} does not run on two images at once in evaluation '
                f'(AssertionError: {reason}), as its dry run does: tap modules before the failing one, which '
                'tools/test.py at batch_size=2 shows'
            ) from error
        for line in lines:
            runner.logger.info(f'distillation term {line}')
        parameters = list(self.distillation.parameters())
        if get_world_size() > 1:
            for parameter in parameters:
                broadcast(parameter.data)
        if trained := [parameter for parameter in parameters if parameter.requires_grad]:
            self._train_adapters(runner, trained)

    def _train_adapters(self, runner: Runner, parameters: Sequence[nn.Parameter]) -> None:
        wrapper, schedulers = runner.optim_wrapper, runner.param_schedulers or []
        # The schedulers exist already, so the new groups copy the last one: the only one, or, where there are several,
        # the one by which mmengine tracks the optimiser's base learning rate.
        base = {key: value for key, value in wrapper.param_groups[-1].items() if key != 'params'}
        scale = runner.auto_scale_lr
        one_cycle = any(isinstance(scheduler, OneCycleParamScheduler) for scheduler in schedulers)  # has its own rates
        if (
            wrapper.base_param_settings is not None and scale and scale.get('enable') and not one_cycle
        ):  # mmengine does not scale the rate that it tracks
            ratio = get_world_size() * runner.train_dataloader.batch_size / scale['base_batch_size']
            base |= {key: base[key] * ratio for key in ('lr', 'initial_lr') if key in base}
        for options in self._options_by_parameter(runner, parameters):
            factor = options.pop('lr', 1.0)
            if one_cycle:
                factor = 1.0
            group = base | options | {key: base[key] * factor for key in ('lr', 'initial_lr') if key in base}
            index = len(wrapper.optimizer.param_groups)
            wrapper.optimizer.add_param_group(group)
            for scheduler in schedulers:
                for name in ('base_values', 'min_values', '_last_value'):
                    if hasattr(scheduler, name):
                        values = getattr(scheduler, name)
                        values.insert(
                            index,
                            group.get(f'initial_{scheduler.param_name}', values[-1])
                            if name == 'base_values'
                            else values[-1],
                        )
        if get_world_size() > 1:
            for parameter in parameters:
                parameter.register_post_accumulate_grad_hook(_average_gradient)

    def _options_by_parameter(self, runner: Runner, parameters: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
        """Return the parameters in groups with options of their own, as ``paramwise_cfg`` gives them; lr is a factor.

        Other constructors than mmengine's own, as those of layer-wise rates, know no adapters: these keep the base's.
        """
        config = copy.deepcopy(runner.cfg.get('optim_wrapper')) or {}
        paramwise = config.pop('paramwise_cfg', None)
        if not paramwise or config.pop('constructor', _CONSTRUCTOR) not in (_CONSTRUCTOR, f'mmengine.{_CONSTRUCTOR}'):
            return [dict(params=parameters)]
        groups: list[dict[str, Any]] = []
        constructor = DefaultOptimWrapperConstructor(config, paramwise)
        constructor.add_params(groups, self.distillation, 'distillation')  # named as in a Distiller
        for group in groups:
            if 'lr' in group:
                group['lr'] = group['lr'] / constructor.base_lr if constructor.base_lr else 1.0
        return [group for group in groups if group['params'][0].requires_grad]

    def before_train(self, runner: Runner) -> None:
        """Wrap the student's forward, so that it returns the terms' losses as well in mode ``loss``."""
        if self._wraps:  # an exception has ended an earlier train(), without after_train
            self.after_train(runner)
        # Schedules take a run that an exception has ended, and that was built later, for one that trains.
        MessageHub._instance_dict.move_to_end(runner.message_hub.instance_name)
        runner.message_hub.update_info('by_epoch', not isinstance(runner.train_loop, IterBasedTrainLoop))
        student, distillation = unwrapped(runner.model), self.distillation
        own_forward = self._own_forward = vars(student).get('forward')

        # A bound method, so that a copy of the student (EMA) runs its own layers.
        @wraps(type(student).forward)
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            # Not a bound method: torch.compile would look its name up again, and find this function.
            run_student = own_forward or partial(type(self).forward, self)
            inputs, data_samples, mode, others = _arguments(*args, **kwargs)
            if mode != 'loss' or self is not student:
                return run_student(*args, **kwargs)
            run_student = partial(run_student, inputs, data_samples, **others)
            return distillation.losses(run_student, inputs, data_samples)  # type: ignore[union-attr]  # set by before_run

        student.forward = MethodType(forward, student)
        for teacher in distillation.teachers:  # type: ignore[union-attr]  # set by before_run
            teacher.origins.watch()
        self._wraps = True

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Mapping[str, Any] | None = None,
    ) -> None:
        """Check that the step has run the student's forward.

        Raises:
            UserError: It has not, so the student would train without the terms.
        """
        if not self.distillation.gradients_checked:  # type: ignore[union-attr]  # set by before_run
            raise UserError(
                f"a step of {type(unwrapped(runner.model)).__name__} ran no forward in mode 'loss', to "
                'which DistillationHook adds its terms: let train_step call the model itself (MutualLearning does so '
                "with update='joint')"
            )

    def after_train(self, runner: Runner) -> None:
        """Restore the student's forward."""
        student = unwrapped(runner.model)
        if self._own_forward is None:
            del student.forward
        else:
            student.forward = self._own_forward
        self._wraps = False
        for teacher in self.distillation.teachers:  # type: ignore[union-attr]  # set by before_run
            teacher.origins.close()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the adapters to the checkpoint."""
        if self.distillation is not None and (adapters := self.distillation.state_dict()):
            checkpoint['distillation'] = {name: value.cpu() for name, value in adapters.items()}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Load the adapters on resuming."""
        if not runner._resume or self.distillation is None or not self.distillation.state_dict():
            return
        if 'distillation' not in checkpoint:
            raise UserError(
                'the checkpoint to resume from holds no adapters or critics, but a term trains some: it '
                'was written without this DistillationHook; start a new run with load_from instead of --resume'
            )
        try:
            self.distillation.load_state_dict(checkpoint['distillation'])
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(
                f'the adapters in the checkpoint are not those of this config ({reason}): resume with the '
                'config that wrote it'
            ) from error


def distillation_of(runner: Runner) -> Distillation | None:
    """Return the distillation of a run, by the hook or by a :class:`~kd_plugins.models.Distiller`, or None."""
    by_hook = (hook.distillation for hook in runner.hooks if isinstance(hook, DistillationHook))
    by_model = (module for module in unwrapped(runner.model).children() if isinstance(module, Distillation))
    return next(filter(None, (*by_hook, *by_model)), None)


def give_num_samples(distillation: Distillation, dataset: Any) -> None:
    """Give the number of images of the training set to the losses that need their indices, and to the caches.

    Raises:
        UserError: The data set numbers different images alike, or a loss was given a smaller number.
    """
    views, inner = 1, dataset
    while inner is not None:
        own = getattr(inner, 'views', None)  # another package's may be anything
        views, inner = max(views, own if type(own) is int else 1), getattr(inner, 'dataset', None)
    for teacher in distillation.teachers:
        teacher.expect(views * len(dataset))
    names = [term.name for term in distillation.terms if term.needs_indices]
    if not names:
        return
    while not isinstance(dataset, BaseDataset) and hasattr(dataset, 'dataset'):
        dataset = dataset.dataset  # a wrapper, which leaves sample_idx as it is
    if isinstance(dataset, ConcatDataset):
        raise UserError(
            f"term '{names[0]}': its loss needs the index of each image, but {type(dataset).__name__} numbers the "
            'images of each of its data sets from 0: give one data set of all images'
        )
    distillation.set_num_samples(len(dataset))


def _copied(dataset: Any) -> Any:
    """Return a copy of a data set, of which samples can be drawn while its pipeline keeps none (mmdet's CachedMosaic).

    The arrays are shared. One that cannot be copied is returned itself.
    """
    shared: dict[int, Any] = {}
    parts = [dataset]
    while parts:
        part = parts.pop()
        own = getattr(part, '__dict__', {})
        shared |= {id(x): x for name, x in own.items() if isinstance(x, (np.ndarray, Tensor)) or name == 'data_list'}
        parts += [own['dataset']] if 'dataset' in own else own.get('datasets') or []
    try:
        return copy.deepcopy(dataset, shared)
    except Exception:  # files, locks and what else has no copy
        return dataset


def _arguments(
    inputs: Any, data_samples: Any = None, mode: str = 'tensor', **others: Any
) -> tuple[Any, Any, str, dict[str, Any]]:
    """Return the arguments of a student's forward, whose own signature may be (*args, **kwargs)."""
    return inputs, data_samples, mode, others


def _average_gradient(parameter: nn.Parameter) -> None:
    all_reduce(parameter.grad, 'mean')
