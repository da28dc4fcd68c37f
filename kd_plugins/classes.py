"""Class lists of training, of a checkpoint and of other data, compared."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from kd_plugins.errors import UserError


def check_classes(trained: Sequence[str], given: Sequence[str], name: str) -> None:
    """Compare two lists of class names.

    Args:
        trained: Classes of the training data.
        given: Classes of other data.
        name: Name of the other data in the config.

    Raises:
        UserError: The lists differ, so that a label has two meanings.
    """
    if tuple(trained) == tuple(given):
        return
    label, one, other = next((i, x, y) for i, (x, y) in enumerate(zip_longest(trained, given)) if x != y)
    raise UserError(
        f'{name}: label {label} is {other!r} there and {one!r} in training ({len(given)} classes and '
        f'{len(trained)}); give both the same classes, or the same class folders'
    )


def check_checkpoint_classes(checkpoint: Mapping[str, Any], dataset: Any) -> None:
    """Compare the classes in a checkpoint, where it has them, with those of the data to test on.

    Other packages may spell names differently, so only a name that has different labels in the two is an error.

    Raises:
        UserError: A name has different labels.
    """
    meta = checkpoint.get('meta')
    trained = ((meta.get('dataset_meta') if isinstance(meta, Mapping) else None) or {}).get('classes') or ()
    named = not getattr(dataset, 'return_classes', False)
    given = ((getattr(dataset, 'metainfo', None) or {}).get('classes') if named else None) or ()
    if any(own != other and other in trained for own, other in zip(trained, given, strict=False)):
        check_classes(trained, given, 'test_dataloader')
