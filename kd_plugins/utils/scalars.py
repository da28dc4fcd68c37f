"""What mmengine writes of a run's numbers."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmengine.runner import IterBasedTrainLoop, Runner


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the numbers in the lines of a ``scalars.json``, which is read once for each state of it."""
    state = path.stat()
    return _read_lines(path, state.st_mtime_ns, state.st_size)


def time_of(runner: Runner) -> int:
    """Return the epoch or, of a run by iterations, the iteration."""
    return runner.iter if isinstance(runner.train_loop, IterBasedTrainLoop) else runner.epoch


def score_in_log(folder: Path, time: int) -> list[Any] | None:
    """Return name and value of the first metric that the run in a folder has last logged at this epoch or iteration."""
    for path in sorted(folder.glob('*/vis_data/scalars.json'), reverse=True):
        for line in reversed(lines_of(path)):
            names = [name for name in line if name not in ('data_time', 'time', 'step')]
            if line.get('step') == time and names and 'iter' not in line:  # not of training
                return [names[0], float(line[names[0]])]
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
