"""What data sets say of those inside them."""

from collections.abc import Iterator, Mapping
from typing import Any


def corruptions(dataset: Any) -> Iterator[dict[str, Any]]:
    """Yield what :func:`kd_plugins.datasets.corruption.report` says of a data set and of all that it wraps."""
    if isinstance(report := getattr(dataset, 'corruption', None), Mapping):
        yield dict(report)
    yield from getattr(dataset, 'corruption_reports', [])  # BatchedImages, which does not keep what it wraps
    inner = getattr(dataset, 'dataset', None)
    for part in [*getattr(dataset, 'datasets', []), *([] if inner is None else [inner])]:
        yield from corruptions(part)
