"""The processors of this machine."""

import os


def usable_cores() -> int:
    """Return how many processors this process may use; where the system does not tell (macOS), how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
