"""A record of what was done to the training data, which no scored data share."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from kd_plugins.errors import UserError
from kd_plugins.registry import HOOKS
from kd_plugins.utils.files import write_text


@HOOKS.register_module()
class CorruptionHook(Hook):
    """Writes ``corruption.json`` beside the run where the training data are corrupted; nothing where they are clean.

    It holds the options, the number of samples of each (true) class, and index, true and given label of every sample
    whose label was changed; a list of such records where several corrupted sets are joined.

    Raises:
        UserError: Before training or testing, where data that are scored are corrupted.
    """

    def before_test(self, runner: Runner) -> None:
        """Look at what is tested on."""
        _refuse_corrupted('test_dataloader', runner.test_dataloader)

    def before_train(self, runner: Runner) -> None:
        """Look at what training is scored on, and write the file."""
        if runner.val_loop is not None:
            _refuse_corrupted('val_dataloader', runner.val_dataloader)
        self._write(runner)

    @master_only
    def _write(self, runner: Runner) -> None:
        found = list(_corruptions(runner.train_dataloader.dataset))
        if found:
            text = json.dumps(found[0] if len(found) == 1 else found)
            write_text(Path(runner.work_dir, 'corruption.json'), f'{text}\n')


def _refuse_corrupted(name: str, loader: DataLoader) -> None:
    if any(_corruptions(loader.dataset)):
        raise UserError(f'{name}: its data have label_noise or imbalance, which are for training alone; take them out')


def _corruptions(dataset: Any) -> Iterator[dict[str, Any]]:
    if getattr(dataset, 'corruption', None) is not None:
        yield dataset.corruption
    inner = getattr(dataset, 'dataset', None)
    for part in [*getattr(dataset, 'datasets', []), *([] if inner is None else [inner])]:
        yield from _corruptions(part)
