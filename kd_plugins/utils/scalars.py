"""What mmengine writes of a run's numbers."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmengine.runner import IterBasedTrainLoop, Runner

BEGAN = 'run_began'  # in mmengine's message hub, and so in checkpoints: the name of a run's first log


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the numbers in the lines of a ``scalars.json``, which is read once for each state of it."""
    state = path.stat()
    return _read_lines(path, state.st_mtime_ns, state.st_size)


def time_of(runner: Runner) -> int:
    """Return the epoch or, of a run by iterations, the iteration."""
    return runner.iter if isinstance(runner.train_loop, IterBasedTrainLoop) else runner.epoch


def main_metric(names: Sequence[str]) -> str:
    """Return the first of several metrics, but mmseg's share of right pixels, which it names before the mean IoU."""
    return next((name for name in names if name.rpartition('/')[2] != 'aAcc'), names[0])


def score_in_log(runner: Runner) -> list[Any] | None:
    """Return name and value of the main metric that a resumed run has logged at the epoch or iteration where it is.

    The run notes in :data:`BEGAN` when it has begun: logs of earlier ones may lie in its folder.
    """
    began, now = runner.message_hub.runtime_info.get(BEGAN, ''), time_of(runner)
    folders = {Path(runner._load_from or '').parent, Path(runner.work_dir)}
    paths = [path for folder in folders for path in folder.glob('*/vis_data/scalars.json')]
    for path in sorted(paths, key=lambda path: path.parts[-3], reverse=True):
        for line in reversed(lines_of(path) if path.parts[-3] >= began else []):
            # A KNNHook has lines of its own.
            names = [x for x in line if x not in ('data_time', 'time', 'step') and not x.startswith('knn/')]
            if line.get('step') == now and names and 'iter' not in line:  # not of training
                return [main_metric(names), float(line[main_metric(names)])]
    return None


@lru_cache(256)  # a study that searches asks every two seconds
def _read_lines(path: Path, *state: int) -> list[dict[str, Any]]:
    lines = []
    for line in path.read_text(errors='replace').splitlines():
        try:
            values = json.loads(line)
        except ValueError:  # the last line of a killed run can be incomplete
            continue
        if isinstance(values, dict):
            lines.append({key: value for key, value in values.items() if isinstance(value, (int, float))})
    return lines
