"""What data sets say of those inside them."""

from collections.abc import Iterator
from typing import Any


def corruptions(dataset: Any) -> Iterator[dict[str, Any]]:
    """Yield what :func:`kd_plugins.datasets.corruption.report` says of a data set and of all that it wraps."""
    if getattr(dataset, 'corruption', None) is not None:
        yield dataset.corruption
    yield from getattr(dataset, 'corruptions', [])  # BatchedImages, which does not keep what it wraps
    inner = getattr(dataset, 'dataset', None)
    for part in [*getattr(dataset, 'datasets', []), *([] if inner is None else [inner])]:
        yield from corruptions(part)
