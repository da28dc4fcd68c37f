"""A record of what was done to the training data."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner

from kd_plugins.checkpoint import AtomicBackend
from kd_plugins.registry import HOOKS


@HOOKS.register_module()
class CorruptionHook(Hook):
    """Writes ``corruption.json`` beside the run where the training data are corrupted; nothing where they are clean.

    It holds the options, the number of samples of each (true) class, and index, true and given label of every sample
    whose label was changed; a list of such records where several corrupted sets are joined.
    """

    @master_only
    def before_train(self, runner: Runner) -> None:
        """Write the file."""
        found = list(_corruptions(runner.train_dataloader.dataset))
        if found:
            text = json.dumps(found[0] if len(found) == 1 else found)
            AtomicBackend().put(f'{text}\n'.encode(), str(Path(runner.work_dir, 'corruption.json')))


def _corruptions(dataset: Any) -> Iterator[dict[str, Any]]:
    if getattr(dataset, 'corruption', None) is not None:
        yield dataset.corruption
    inner = getattr(dataset, 'dataset', None)
    for part in [*getattr(dataset, 'datasets', []), *([] if inner is None else [inner])]:
        yield from _corruptions(part)
