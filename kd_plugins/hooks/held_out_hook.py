"""Evaluation on held-out training data, to select an epoch."""

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner, ValLoop, autocast

from kd_plugins.registry import HOOKS


@HOOKS.register_module()
class HeldOutHook(Hook):
    """Evaluates a held-out part of the training data at every validation.

    Its metrics join those of the validation set in log, result and checkpoint hooks, so that
    ``CheckpointHook(save_best='validation/top1')`` selects an epoch without the test set. Its metric needs a prefix of
    its own::

        data = dict(type='kd_plugins.CIFAR10', data_root='data/cifar10', split='train')
        train_dataloader = dict(dataset=dict(data, validation=dict(size=5000)), ...)
        custom_hooks = [dict(
            type='kd_plugins.HeldOutHook', evaluator=dict(type='Accuracy', prefix='validation'),
            dataloader=dict(val_dataloader, dataset=dict(data, validation=dict(size=5000, part='val'))))]

    Args:
        dataloader: Config dict of the data loader.
        evaluator: Config dict of the metric, or a list of them.
    """

    priority = 'HIGHEST'  # before the hooks that use the metrics

    def __init__(self, dataloader: Mapping[str, Any], evaluator: Any) -> None:
        self._dataloader, self._evaluator = dataloader, evaluator
        self._loop: ValLoop | None = None

    @property
    def dataset(self) -> Any:
        """The held-out data set, None before it is built."""
        return None if self._loop is None else self._loop.dataloader.dataset

    def _built(self, runner: Runner) -> ValLoop:
        if self._loop is None:
            self._loop = ValLoop(runner, self._dataloader, self._evaluator)
        return self._loop

    def before_train(self, runner: Runner) -> None:
        """Build the data, so that errors in them are raised before training."""
        self._built(runner)

    def before_val(self, runner: Runner) -> None:
        """Build the data at the first call."""
        self._built(runner)

    @torch.no_grad()
    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        """Evaluate, in the precision of the validation loop."""
        loop = self._built(runner)
        for batch in loop.dataloader:
            with autocast(enabled=runner.val_loop.fp16):
                outputs = runner.model.val_step(batch)
            loop.evaluator.process(data_samples=outputs, data_batch=batch)
        metrics.update(loop.evaluator.evaluate(len(loop.dataloader.dataset)))
