"""Gradients that wait for their step, across a resume."""

from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import all_reduce, is_distributed
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from kd_plugins.registry import HOOKS


@HOOKS.register_module()
class AccumulationHook(Hook):
    """Keeps in each checkpoint the gradients that ``accumulative_counts`` has not stepped by yet.

    mmengine counts iterations over the end of an epoch and drops what was pending there when a run is resumed. With
    this hook a resumed run takes the same steps as one that was not. Where an epoch's length is a multiple of the
    count, nothing is pending and the checkpoint has no key more.
    """

    priority = 'LOW'  # after the hooks that add their parameters to the optimiser, before the one that saves

    def __init__(self) -> None:
        self._pending: list[Tensor | None] | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Take the gradients out."""
        self._pending = checkpoint.get('pending_gradients')

    def before_train(self, runner: Runner) -> None:
        """Go on from them, in a run that was resumed."""
        if self._pending is not None and runner.iter:
            for parameter, gradient in zip(_parameters(runner), self._pending, strict=True):
                parameter.grad = None if gradient is None else gradient.to(parameter)
        self._pending = None

    def before_train_epoch(self, runner: Runner) -> None:
        """Let go of what the epoch before has kept."""
        self._pending = None

    def after_train_epoch(self, runner: Runner) -> None:
        """Take the mean over the processes, which have not shared theirs yet; only the first one saves."""
        if is_distributed() and _waits(runner):
            gradients = [parameter.grad for parameter in _parameters(runner)]
            present = torch.tensor([0.0 if x is None else 1.0 for x in gradients], device=get_device())
            all_reduce(present)
            self._pending = [
                _mean(parameter) if there else None
                for parameter, there in zip(_parameters(runner), present.tolist(), strict=True)
            ]

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Put the gradients in."""
        if _waits(runner):
            checkpoint['pending_gradients'] = self._pending or [x.grad for x in _parameters(runner)]


def _waits(runner: Runner) -> bool:
    """Say whether there are gradients that no step has used yet."""
    return isinstance(runner.optim_wrapper, OptimWrapper) and not runner.optim_wrapper.should_update()


def _parameters(runner: Runner) -> list[Tensor]:
    return [parameter for group in runner.optim_wrapper.param_groups for parameter in group['params']]


def _mean(parameter: Tensor) -> Tensor:
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
    all_reduce(gradient, 'mean')
    return gradient
