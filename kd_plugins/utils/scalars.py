"""What mmengine writes of a run's numbers."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the numbers in the lines of a ``scalars.json``, which is read once for each state of it."""
    state = path.stat()
    return _read_lines(path, state.st_mtime_ns, state.st_size)


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
