"""A summary of a run at its end: what was trained, how well, and what to do with it."""

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import master_only
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

from kd_plugins.commands import TOOLS
from kd_plugins.distillation.schedule import Schedule
from kd_plugins.distillation.term import Term
from kd_plugins.errors import UserError
from kd_plugins.hooks.distillation_hook import distillation_of
from kd_plugins.registry import HOOKS
from kd_plugins.utils.files import plain
from kd_plugins.utils.models import unwrapped
from kd_plugins.utils.scalars import main_metric, score_in_log, time_of

_SCORES = 'scores_of_summary'  # in mmengine's message hub, and so in checkpoints


@HOOKS.register_module()
class SummaryHook(Hook):
    """At the end of training, logs in a few lines what was trained, from which teacher, how well, and where it is.

    Last and best epoch are those of the first metric of the validation (of mmseg's, the one behind the share of right
    pixels); the best one is chosen by the very data that it is scored on. Parameters and multiply-adds are counted as
    :mod:`kd_plugins.export` does, by one forward pass of an image of the size that the validation has (training, where
    there is none). The last line is the command that exports the student.

    An error here is logged, and never fails a run.
    """

    priority = 'LOWEST'  # after ExportHook, whose files it names

    def __init__(self) -> None:
        self._shape: tuple[int, ...] | None = None
        self._trains = self._has_trained = False

    def before_train(self, runner: Runner) -> None:
        """Begin to note the scores."""
        self._trains = True
        if not runner._resume:
            runner.message_hub.update_info(_SCORES, {})
        elif found := score_in_log(runner):
            # A checkpoint is written before its validation.
            scores = runner.message_hub.runtime_info.get(_SCORES) or {}
            runner.message_hub.update_info(_SCORES, {time_of(runner): found} | scores)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Note the size of the images, until a validation tells better."""
        self._shape = self._shape or _shape_of(data_batch)

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Note the size of the images."""
        if not batch_idx:
            self._shape = _shape_of(data_batch) or self._shape

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, Any] | None = None) -> None:
        """Note the main metric."""
        found = {name: value for name, value in plain(metrics or {}).items() if isinstance(value, (int, float))}
        if self._trains and found:
            name = main_metric([*found])
            scores = runner.message_hub.runtime_info.get(_SCORES) or {}
            scores[time_of(runner)] = [name, float(found[name])]
            runner.message_hub.update_info(_SCORES, scores)

    def after_train(self, runner: Runner) -> None:
        """Note that training has come to its end."""
        self._has_trained = True  # ExportHook may validate once more

    @master_only
    def after_run(self, runner: Runner) -> None:
        """Log the summary of a run that has trained to its end."""
        if not self._has_trained:
            return
        self._trains = self._has_trained = False
        try:
            rows = [*self._rows(runner)]
            width = max(len(name) for name, _ in rows)
            lines = [f'  {name:{width}}  {text}' for name, text in rows]
            runner.logger.info('\n'.join(['the run has ended:', *lines]))
        except Exception as error:  # the run itself has succeeded
            runner.logger.warning(f'no summary: {type(error).__name__}: {" ".join(str(error).split())}')

    def _rows(self, runner: Runner) -> Iterator[tuple[str, str]]:
        model, distillation = unwrapped(runner.model), distillation_of(runner)
        student = getattr(model, 'student', model)
        variant = runner.cfg.get('variant')
        yield 'config', f'{runner.cfg.filename or "(none)"}{f", {variant}" if variant else ""}'
        among = '' if distillation or student is model else f' of a {type(model).__name__}'
        yield 'student', f'{_described(student, self._shape)}{among}'
        for index, teacher in enumerate(distillation.teachers if distillation else []):
            config = distillation.teacher_configs[index]  # type: ignore[union-attr]  # there are teachers
            shape = self._shape and (self._shape[0], *teacher.input_size(torch.empty(1, *self._shape)))
            yield 'teacher', f'{_described(teacher.model, shape)}; {_origin(config)}'
        if distillation:
            yield 'terms', ', '.join(map(_term, distillation.terms))
        yield from _scores(runner)
        yield from _files(runner, student)


def _shape_of(batch: Any) -> tuple[int, ...] | None:
    """Return the shape (C, H, W) of the first image of a batch, where it has one."""
    try:
        shape = tuple(batch['inputs'][0].shape)
        return shape if len(shape) == 3 else None
    except (TypeError, KeyError, IndexError, AttributeError):
        return None


def _described(network: nn.Module, shape: tuple[int, ...] | None) -> str:
    """Return a network's class, parameters and multiply-adds for an image of this shape."""
    from kd_plugins.export.card import macs_of, parameters_of  # only here: a run starts without them
    from kd_plugins.export.network import exportable

    backbone = getattr(network, 'backbone', None)
    name = type(network).__name__ + (f' ({type(backbone).__name__})' if isinstance(backbone, nn.Module) else '')
    part: Any = network
    with _evaluating(network):
        try:
            part = exportable(network)
        except Exception:  # of another library, or a detector in two stages
            network.eval()
        size = f'{name}, {parameters_of(part) / 1e6:.3f} M parameters'
        if shape is None:
            return size
        divisor = getattr(getattr(network, 'data_preprocessor', None), 'pad_size_divisor', 1)
        channels, height, width = shape[0], *(-(-side // divisor) * divisor for side in shape[1:])
        image = torch.zeros(1, channels, height, width, device=next(network.parameters()).device)
        try:
            return f'{size}, {macs_of(part, image) / 1e6:,.1f} M MACs for {height} × {width}'
        except Exception:  # as that of a second stage, which needs annotations
            return size


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Restore the mode of each module after the block."""
    modes = {module: module.training for module in network.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _origin(config: Mapping[str, Any]) -> str:
    """Return where a teacher comes from, as its config dict says it."""
    found = []
    for key in ('config', 'timm', 'torchvision', 'huggingface', 'build', 'checkpoint'):
        if (value := config.get(key)) is not None:
            found.append(f'{key}={value if isinstance(value, str) else "dict(...)"}')
    return ', '.join(found)


def _term(term: Term) -> str:
    weights = term.weight.value if isinstance(term.weight, Schedule) else [term.weight]
    ends = dict.fromkeys([weights[0], weights[-1]])
    return f'{term.name} ({type(term.loss).__name__}, weight {" to ".join(f"{x:g}" for x in ends)})'


def _scores(runner: Runner) -> Iterator[tuple[str, str]]:
    unit = 'iteration' if isinstance(runner.train_loop, IterBasedTrainLoop) else 'epoch'
    scores: dict[int, Any] = runner.message_hub.runtime_info.get(_SCORES) or {}
    if not scores:
        found = {name: x for name, x in runner.message_hub.log_scalars.items() if name.startswith('val/knn/')}
        value = next((f'{name.removeprefix("val/")} {x.current():.4g}' for name, x in found.items()), 'not scored')
        yield 'last', f'{unit} {time_of(runner)}, {value}'
        return
    last = max(scores)
    better = min if 'loss' in scores[last][0] else max
    best = better(scores, key=lambda time: scores[time][1])
    for name, time in (('last', last), ('best', best)):
        metric, value = scores[time]
        note = ' (chosen on the same data: report the last)' if name == 'best' else ''
        yield name, f'{unit} {time}, {metric} {value:.4g}{note}'


def _shown(path: str | Path) -> Path:
    """Return a path as one would type it here: relative, where that is below this folder."""
    relative = os.path.relpath(path)
    return Path(path if relative.startswith('..') else relative)


def _files(runner: Runner, student: nn.Module) -> Iterator[tuple[str, str]]:
    folder = _shown(runner.work_dir)
    checkpoint = folder / 'student.pth'
    if not checkpoint.is_file():
        saved = [hook.last_ckpt for hook in runner.hooks if isinstance(hook, CheckpointHook) and hook.last_ckpt]
        checkpoint = _shown(saved[0]) if saved else checkpoint
    files = [checkpoint, folder / 'result.json', _shown(runner.log_dir) / f'{runner.timestamp}.log']
    yield 'files', ', '.join(str(file) for file in files if file.is_file())
    # As mmengine wrote it: with the command's options, and independent of the environment.
    config = folder / os.path.basename(runner.cfg.filename or f'{runner.timestamp}.py')
    if checkpoint.is_file() and config.is_file():
        yield 'export', export_command(config, checkpoint, student)


def export_command(config: Path, checkpoint: Path, student: nn.Module) -> str:
    """Return the command that exports a student; or why none does."""
    from kd_plugins.export.network import exportable

    tool = Path('tools', 'export.py')
    command = ['python', str(tool)] if tool.is_file() and tool.samefile(TOOLS / 'export.py') else ['kd-export']
    command += [str(config), str(checkpoint), '--to', str(checkpoint.with_name('student.onnx'))]
    with _evaluating(student):
        try:
            exportable(student)
        except UserError as error:
            if not isinstance(getattr(student, 'backbone', None), nn.Module):
                return str(error)
            command.append('--backbone')
    return shlex.join(command)
