"""A report of corruption in the training data, and a check that evaluation data have none."""

import json
from pathlib import Path
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner

from kd_plugins.errors import UserError
from kd_plugins.hooks.held_out_hook import HeldOutHook
from kd_plugins.registry import HOOKS
from kd_plugins.utils.datasets import corruptions
from kd_plugins.utils.files import write_text


@HOOKS.register_module()
class CorruptionHook(Hook):
    """Writes ``corruption.json`` into the run's folder where the training data are corrupted.

    The file has the options, the number of samples per (true) class, and index, true label and given label of every
    sample whose label was changed; a list of these where several corrupted sets are concatenated.

    Raises:
        UserError: Before training or testing: evaluation data are corrupted.
    """

    def before_test(self, runner: Runner) -> None:
        """Check the test data."""
        _refuse_corrupted('test_dataloader', runner.test_dataloader.dataset)

    def before_train(self, runner: Runner) -> None:
        """Check the validation data and those that a ``HeldOutHook`` evaluates, and write the file."""
        if runner.val_loop is not None:
            _refuse_corrupted('val_dataloader', runner.val_dataloader.dataset)
        for hook in runner.hooks:
            if isinstance(hook, HeldOutHook):
                _refuse_corrupted('HeldOutHook', hook.dataset)
        self._write(runner)

    @master_only
    def _write(self, runner: Runner) -> None:
        found = list(corruptions(runner.train_dataloader.dataset))
        if found:
            text = json.dumps(found[0] if len(found) == 1 else found)
            write_text(Path(runner.work_dir, 'corruption.json'), f'{text}\n')


def _refuse_corrupted(name: str, dataset: Any) -> None:
    if any(corruptions(dataset)):
        raise UserError(f'{name}: its data have label_noise or imbalance, which are for training only; remove them')
