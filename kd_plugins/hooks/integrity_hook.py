"""Checks of weights and checkpoints that end a run instead of a wrong result."""

import copy
import hashlib
import inspect
import logging
import uuid
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor

from kd_plugins.checkpoint import RUN_ID, load_loosely, weights_of
from kd_plugins.errors import UserError
from kd_plugins.hooks.distillation_hook import distillation_of
from kd_plugins.pretrained import check_arrival
from kd_plugins.registry import HOOKS, type_name
from kd_plugins.utils.files import write_text
from kd_plugins.utils.models import unwrapped

DIGESTS, _TERMS, _INTO = 'config_digests', 'distillation_terms', 'into_epoch'  # in the meta of a checkpoint
_SCHEDULE = {'param_scheduler', 'train_cfg'}
# Where files are, which another machine may have elsewhere, and what commands set.
_PLACES = {'data_root', 'data_prefix', 'ann_file', 'checkpoint', 'cache', 'skip_corrupt', 'bf16'}


@HOOKS.register_module()
class IntegrityHook(Hook):
    """Ends a run that would train or save something other than its config says.

    mmengine loads checkpoints loosely and saves weights unchecked. With this hook a run ends with one line where

    * ``load_from`` or a pretrained ``init_cfg`` has no tensor of the model, or ``--resume`` lacks one, or the state of
      the optimiser, or would go on with another schedule or learning rate than the config's, or with distillation terms
      in another order, whose adapters it would swap (with another number of iterations an epoch, as of another batch
      size, schedules and rates are those of this config instead, from the start of the epoch);
    * there is no iteration to train, or, of a checkpoint at the end of a run with another model, data, optimiser or
      distillation, none is left (else such a change is logged);
    * weights are not finite when they are saved.

    The hook also writes an id of the run into its folder and its checkpoints, so that ``--resume`` never uses the
    checkpoints of an older run in the same folder.

    Raises:
        UserError: In these cases.
    """

    priority = 'VERY_HIGH'
    _behind: Sequence[int] = ()
    _changed: Sequence[str] = ()
    _began = 0  # iteration at which the epoch has begun

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Compare the checkpoint with the model, the optimiser and the schedules."""
        path = runner._load_from
        model = unwrapped(runner.model)
        misfit = load_loosely(model, weights_of(checkpoint, path))
        if not runner._resume:
            if not misfit.loaded:
                raise UserError(
                    f'load_from: no tensor of {path} fits {type(model).__name__} ({misfit}): give the '
                    'checkpoint of such a network, or remove load_from'
                )
            return
        if misfit:
            raise UserError(
                f'a run cannot resume from {path}, which does not fit {type(model).__name__}: {misfit}; '
                "give this config's own checkpoint, or load the tensors that fit with load_from"
            )
        meta, optimizer = checkpoint.get('meta'), checkpoint.get('optimizer')
        if not isinstance(optimizer, dict) or not isinstance(meta, dict) or not {'epoch', 'iter'} <= meta.keys():
            raise UserError(
                f'a run cannot resume from {path}, which holds no state of an optimiser: give one of the '
                "run's own checkpoints, or load its weights with load_from"
            )
        self._changed = [key for key in changed_keys(meta, runner.cfg) if key not in _SCHEDULE]  # which may be longer
        if self._changed:
            print_log(
                f'{path} was written with another {" and ".join(self._changed)}: the resumed run goes on with '
                "this config's",
                'current',
                logging.WARNING,
            )
        into = meta.get(_INTO, 0)
        if into and not isinstance(runner.train_loop, IterBasedTrainLoop):
            print_log(
                f'{path} was written {into} iterations into epoch {meta["epoch"] + 1}, which the resumed run repeats '
                'whole, so that it takes more steps than one that was not stopped: for the same weights, write '
                "checkpoints by epochs (dict(type='CheckpointHook', interval=1))",
                'current',
                logging.WARNING,
            )
        _check_terms(path, meta.get(_TERMS, ()), _trained_terms(runner))
        # The wrapper's own param_groups have one more, by which mmengine tracks the base learning rate.
        own, groups = getattr(runner.optim_wrapper, 'optimizer', None), optimizer.get('param_groups')
        if own is not None and groups:
            _check_groups(path, groups, own.param_groups)
        # Of another number of processes, or another batch size, iterations count differently.
        begun = meta['epoch'] * len(runner.train_dataloader)
        same = isinstance(runner.train_loop, IterBasedTrainLoop) or meta['iter'] - into == begun
        schedules, states = _flat(runner.param_schedulers), _flat(checkpoint.get('param_schedulers'))
        self._behind = _check_schedules(path, states, schedules, same)
        if not same and own is not None:
            scheduled = _replay(runner, checkpoint)
            note = f', where {" and ".join(sorted(scheduled))} go on as this config gives them' if scheduled else ''
            print_log(
                f'{path} was written after {meta["iter"] - into} iterations, and this config has {begun} before epoch '
                f'{meta["epoch"] + 1} (another batch size or number of processes, or a resume from within an epoch)'
                f'{note}',
                'current',
                logging.WARNING,
            )
            meta['iter'] = begun
        if own is not None and groups:
            _note_options(path, groups, own.param_groups, {schedule.param_name for schedule in schedules})

    def before_train(self, runner: Runner) -> None:
        """Check that there is something to train on, and write the run's id."""
        loader = runner.train_dataloader
        endless = isinstance(getattr(loader.batch_sampler, 'sampler', None), InfiniteSampler) and len(loader.dataset)
        if not (len(loader) or endless) or not runner.max_iters:
            raise UserError(
                f'there is no iteration to train: {len(loader.dataset)} samples make {len(loader)} batches'
                f'{" (drop_last drops an incomplete one)" if getattr(loader, "drop_last", False) else ""}, for '
                f'{runner.max_epochs} epochs: lower the batch size, or give more data or epochs'
            )
        by_iterations = isinstance(runner.train_loop, IterBasedTrainLoop)
        left = runner.max_iters - runner.iter if by_iterations else runner.max_epochs - runner.epoch
        if self._changed and left <= 0:
            raise UserError(
                f'{runner._load_from} ends a run with another {" and ".join(self._changed)}, and nothing is left to '
                'train: start anew, without --resume, or in another folder (--work-dir)'
            )
        with warnings.catch_warnings():  # mmengine's, of a step before the optimiser's first
            warnings.simplefilter('ignore', UserWarning)
            for schedule, steps in zip(_flat(runner.param_schedulers), self._behind, strict=False):
                for _ in range(steps):
                    schedule.step()
        if not runner._load_from:
            check_arrival(unwrapped(runner.model))
        if not runner._resume:
            runner.message_hub.update_info(RUN_ID, uuid.uuid4().hex)
        if is_main_process():
            run_id = runner.message_hub.runtime_info.get(RUN_ID, '')  # '' after a checkpoint without one
            write_text(Path(runner.work_dir, RUN_ID), run_id)

    def before_train_epoch(self, runner: Runner) -> None:
        """Note the iteration."""
        self._began = runner.iter

    def after_train_epoch(self, runner: Runner) -> None:
        """Note the iteration: what is written from now on is no part of the epoch."""
        self._began = runner.iter

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Keep the last good checkpoint where the weights are not finite, and note what a resumed run is to have."""
        _check_finite(runner, checkpoint['state_dict'])
        meta = checkpoint['meta']
        meta[_TERMS], meta[DIGESTS] = _trained_terms(runner), _digests(runner.cfg)
        if meta.get('epoch') == runner.epoch:  # by iterations
            meta[_INTO] = meta.get('iter', 0) - self._began

    def after_train(self, runner: Runner) -> None:
        """Check the weights of a run that saves none, too."""
        _check_finite(runner, unwrapped(runner.model).state_dict())


def _check_finite(runner: Runner, weights: dict[str, Tensor]) -> None:
    parameters = dict(unwrapped(runner.model).named_parameters())  # state_dict may have other names
    bad = [name for name, value in parameters.items() if not value.isfinite().all()]
    # A buffer may hold infinities on purpose, as a mask.
    bad += [name for name, value in weights.items() if value.is_floating_point() and value.isnan().any()]
    if bad:
        raise UserError(
            f'{bad[0]} is not finite after iteration {runner.iter}: training stops, the last good '
            'checkpoint is kept; lower the learning rate'
        )


def _digests(config: Mapping[str, Any]) -> dict[str, str]:
    """Return a digest of each part of a config that decides what is trained."""
    parts: dict[str, Any] = {key: config.get(key) for key in ('model', *sorted(_SCHEDULE))}
    hooks = config.get('custom_hooks') or []
    parts['custom_hooks'] = [x for x in hooks if type_name(x) == 'DistillationHook']  # others may but watch
    parts['train_dataloader'] = (config.get('train_dataloader') or {}).get('dataset')
    parts['batch_size'] = (config.get('train_dataloader') or {}).get('batch_size')
    wrapper = config.get('optim_wrapper') or {}
    parts['optim_wrapper'] = wrapper.get('optimizer')
    parts |= {key: wrapper.get(key) for key in ('accumulative_counts', 'clip_grad', 'paramwise_cfg')}
    return {key: hashlib.sha256(_text(part).encode()).hexdigest()[:16] for key, part in parts.items()}


def _text(value: Any) -> str:
    """Return a value as a text that is the same in another process and folder: without where files are."""
    if isinstance(value, Mapping):
        kept = {k: v for k, v in value.items() if k not in _PLACES and not (k == 'config' and isinstance(v, str))}
        return f'{{{", ".join(sorted(f"{k!r}: {_text(v)}" for k, v in kept.items()))}}}'
    if isinstance(value, (list, tuple)):
        return f'[{", ".join(map(_text, value))}]'
    if isinstance(value, (str, int, float, type(None))):
        return repr(value)
    named = value if hasattr(value, '__qualname__') else type(value)
    return f'{named.__module__}.{named.__qualname__}'


def changed_keys(meta: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Return the keys of a config whose part is not what a checkpoint was written with, as far as ``meta`` says so."""
    before, now = meta.get(DIGESTS), _digests(config)
    return [key for key in now if isinstance(before, Mapping) and before.get(key, now[key]) != now[key]]


def _trained_terms(runner: Runner) -> list[str]:
    """Return the names of the terms that have weights of their own, in the order of these weights."""
    distillation = distillation_of(runner)
    return [term.name for term in distillation.terms if term.state_dict()] if distillation is not None else []


def _check_terms(path: str, saved: Sequence[str], own: Sequence[str]) -> None:
    """Compare the order of distillation terms, by which a checkpoint numbers their weights."""
    before, now = [x for x in saved if x in own], [x for x in own if x in saved]
    if before != now:
        raise UserError(
            f'{path} was written with terms in the order {", ".join(before)}, this config has {", ".join(now)}: list '
            'them in the order of the checkpoint, which numbers their weights, or load its weights with load_from'
        )


def _check_groups(path: str, saved: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]]) -> None:
    """Compare an optimiser's saved parameter groups with those of the config."""
    missing, new = (sorted(set(a[0]) - set(b[0])) for a, b in ((saved, own), (own, saved)))
    if missing and new:  # another version of torch has more options, or fewer, but not both
        raise UserError(
            f'{path} was written by another optimiser ({", ".join(missing)}; this one has {", ".join(new)}): '
            'resume with the config that wrote it, or load its weights with load_from'
        )
    sizes = [[len(group['params']) for group in groups] for groups in (saved, own)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f'{path} was written by an optimiser with {len(saved)} parameter groups, this config has '
            f'{len(own)}, or groups of other sizes: resume with the config that wrote it, or load its weights with '
            'load_from'
        )


def _note_options(
    path: str, saved: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]], scheduled: set[str]
) -> None:
    """Log where a resumed run keeps other options of the optimiser than the config's; a hook may have set them."""
    for before, now in zip(saved, own, strict=True):
        for name in sorted((before.keys() & now.keys()) - {'params', *scheduled}):
            old, new = (list(x) if isinstance(x, tuple) else x for x in (before[name], now[name]))
            if old != new and not name.startswith('initial_'):
                print_log(
                    f'{path} was written with {name}={before[name]}, which the resumed run keeps, and this config '
                    f'gives {now[name]}: to train with that, load the weights with load_from',
                    'current',
                    logging.WARNING,
                )
                return


def _flat(schedules: Any) -> list[Any]:
    """Return schedules, or their states, in one list; those of several optimisers are in a dict."""
    return [x for given in schedules.values() for x in given] if isinstance(schedules, dict) else schedules or []


def _check_schedules(path: str, saved: Sequence[dict[str, Any]], own: Sequence[Any], values: bool) -> list[int]:
    """Compare the saved schedules with those of the config; mmengine would load the states of others silently.

    Where a schedule stops is taken from the config, so that a run can be made longer: the states are changed to that.

    Args:
        path: The checkpoint.
        saved: The states of its schedules.
        own: The schedules of the config.
        values: Whether to compare the numbers, too.

    Returns:
        How many steps each schedule is behind, which a run at its end did not take.
    """
    kinds = [sorted(x.state_dict()) for x in own], [sorted(x) for x in saved]
    if kinds[0] != kinds[1]:
        raise UserError(
            f'{path} was written with {len(saved)} schedules (param_scheduler), this config has '
            f'{len(own)}, or others: resume with the config that wrote it, or load its weights with load_from'
        )
    behind = []
    for schedule, state in zip(own, saved, strict=True) if values else ():
        behind.append(0)
        now = schedule.state_dict()
        # Where it stops is by default the run's end, which may be moved, unless the values follow from it.
        if 'total_iters' not in now and now['end'] != state['end']:
            behind[-1] = max(0, min(state['_global_step'], now['end'] - 1) - state['end'] + 1)
            state.update(end=now['end'], _global_step=state['_global_step'] - behind[-1])
        given = {name for kind in type(schedule).__mro__ for name in inspect.signature(kind).parameters}
        for name in sorted(({*now} & given | {'base_values'}) - {'last_step', 'verbose'}):
            if now.get(name) != state.get(name):
                shown = 'initial values' if name == 'base_values' else name
                raise UserError(
                    f'{path} was written with the {shown} {_shown(state.get(name))} of its {type(schedule).__name__}, '
                    f'and this config gives {_shown(now.get(name))}, which a resumed run would not take: resume with '
                    'the config that wrote it, or load its weights with load_from'
                )
    return behind


def _replay(runner: Runner, checkpoint: dict[str, Any]) -> set[str]:
    """Bring a checkpoint's schedules to the start of its epoch as the run's config has them; return what they schedule.

    What also follows a metric stays as it was saved.
    """
    epochs, iterations = checkpoint['meta']['epoch'], len(runner.train_dataloader)
    own = runner.param_schedulers or []
    kept = {x.param_name for x in own if hasattr(x, 'need_val_args')}
    schedules = [x for x in own if x.param_name not in kept]
    by_iterations, by_epochs = ([x for x in schedules if x.by_epoch == each] for each in (False, True))
    with warnings.catch_warnings():  # mmengine's, of a step before the optimiser's first
        warnings.simplefilter('ignore', UserWarning)
        for _ in range(epochs):
            for schedule in by_iterations * iterations:
                schedule.step()
            for schedule in by_epochs:
                schedule.step()
    states: Any = checkpoint.get('param_schedulers')
    for place, schedule in enumerate(own):
        if schedule in schedules:
            states[place] = copy.deepcopy(schedule.state_dict())
    scheduled = {x.param_name for x in schedules}
    keys = {f'{part}{name}' for name in scheduled for part in ('', 'initial_', 'max_', 'min_')}
    keys |= {'betas'} if any(getattr(x, 'use_betas', False) for x in schedules) else set()
    saved, wrapper = checkpoint['optimizer'], runner.optim_wrapper
    pairs = [*zip(saved['param_groups'], wrapper.optimizer.param_groups, strict=True)]
    if saved.get('base_param_settings') and wrapper.base_param_settings:  # by which mmengine tracks the base rate
        pairs.append((saved['base_param_settings'], wrapper.base_param_settings))
    for before, now in pairs:
        before.update({key: now[key] for key in keys & now.keys()})
    return scheduled


def _shown(value: Any) -> str:
    """Return a schedule's value in a few words: milestones are counted, and there is an initial value a group."""
    if isinstance(value, Mapping):
        value = sorted(value)
    if isinstance(value, Sequence):
        return ', '.join(map(str, dict.fromkeys(value)))
    return str(value)
