"""Accumulated gradients in checkpoints."""

from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor

from kd_plugins.registry import HOOKS


@HOOKS.register_module()
class AccumulationHook(Hook):
    """Saves in each checkpoint the gradients that ``accumulative_counts`` has accumulated since the last step.

    mmengine accumulates across the end of an epoch, and loses the pending gradients when a run is resumed. With this
    hook a resumed run takes the same steps as an uninterrupted one. Where an epoch's length is a multiple of the count,
    no gradients are pending and nothing is added to the checkpoint.
    """

    priority = 'LOW'  # after the hooks that add their parameters to the optimiser, before the one that saves

    def __init__(self) -> None:
        self._pending: list[Tensor | None] | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Read the gradients."""
        self._pending = checkpoint.get('pending_gradients')

    def before_train(self, runner: Runner) -> None:
        """Restore the gradients in a resumed run."""
        if self._pending is not None and runner.iter:
            for parameter, gradient in zip(_parameters(runner), self._pending, strict=True):
                parameter.grad = None if gradient is None else gradient.to(parameter)
        self._pending = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Release the gradients kept for a checkpoint."""
        self._pending = None

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Average the gradients where a checkpoint follows this iteration, as after an epoch."""
        loop = runner.train_loop
        writers = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook) and not hook.by_epoch]
        periods = [(hook.interval, hook.save_begin) for hook in writers]
        if isinstance(loop, IterBasedTrainLoop):  # the best weights are saved at a validation
            periods += [(interval, 0) for interval in loop.dynamic_intervals]
        if any(self.every_n_train_iters(runner, *period) for period in periods):
            self._average(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Average the gradients."""
        self._average(runner)

    def _average(self, runner: Runner) -> None:
        """Average the gradients, which are not reduced yet, over the processes; only the first process saves."""
        if get_world_size() > 1 and _has_pending_gradients(runner):
            gradients = [parameter.grad for parameter in _parameters(runner)]
            present = torch.tensor([0.0 if x is None else 1.0 for x in gradients], device=get_device())
            all_reduce(present)
            self._pending = [
                _mean_gradient(parameter) if count else None
                for parameter, count in zip(_parameters(runner), present.tolist(), strict=True)
            ]

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the gradients to the checkpoint."""
        if _has_pending_gradients(runner):
            checkpoint['pending_gradients'] = self._pending or [x.grad for x in _parameters(runner)]


def _has_pending_gradients(runner: Runner) -> bool:
    """Return whether there are gradients that no step has applied yet."""
    wrapper = runner.optim_wrapper
    several = isinstance(wrapper, OptimWrapperDict)  # each of them accumulates as its own step says
    return isinstance(wrapper, OptimWrapper) and not several and not wrapper.should_update()


def _parameters(runner: Runner) -> list[Tensor]:
    return [parameter for group in runner.optim_wrapper.param_groups for parameter in group['params']]


def _mean_gradient(parameter: Tensor) -> Tensor:
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
    all_reduce(gradient, 'mean')
    return gradient
