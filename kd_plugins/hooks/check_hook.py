"""What would go wrong in silence, or only after hours, is refused before the first step."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from kd_plugins.compat import check_operators, mend_ssd_head
from kd_plugins.errors import UserError
from kd_plugins.registry import HOOKS


@HOOKS.register_module()
class CheckHook(Hook):
    """Compares the classes of what is scored with those that are trained, and looks for the model's operators.

    Raises:
        UserError: Before training, as :func:`check_classes`, or where the data loader's batch is not what its sampler
            puts together; before training or testing, as :func:`kd_plugins.compat.check_operators`.
    """

    def before_run(self, runner: Runner) -> None:
        """Look at the model."""
        mend_ssd_head()
        check_operators(runner.model)

    def before_train(self, runner: Runner) -> None:
        """Look at the data."""
        loader = runner.train_dataloader
        batch = getattr(loader.sampler, 'batch_size', loader.batch_size)
        if batch != loader.batch_size:
            raise UserError(f'train_dataloader: batch_size={loader.batch_size} cuts up what its '
                            f'{type(loader.sampler).__name__} puts together; set batch_size={batch}')
        trained = [*class_lists(loader.dataset)]
        scored = [] if runner.val_loop is None else [*class_lists(runner.val_dataloader.dataset)]
        for name, classes in (*(('train_dataloader', x) for x in trained), *(('val_dataloader', x) for x in scored)):
            if trained:
                check_classes(trained[0], classes, name)


def class_lists(dataset: Any) -> Iterator[Sequence[str]]:
    """Yield the names of labels 0, 1, … of a data set, or of each of those that it joins.

    Where class folders give the labels, these are the folders' names: they are numbered in their order, so that one
    that is missing shifts the labels of all that follow, whatever ``metainfo`` says.
    """
    inner = getattr(dataset, 'dataset', None)
    parts = [*getattr(dataset, 'datasets', []), *([] if inner is None else [inner])]
    for part in parts:
        yield from class_lists(part)
    if not parts:
        classes = getattr(dataset, 'folder_to_idx', None) or getattr(dataset, 'metainfo', {}).get('classes')
        if classes:
            yield tuple(classes)


def check_classes(trained: Sequence[str], given: Sequence[str], name: str) -> None:
    """Compare two lists of class names.

    Args:
        trained: The classes of the training data.
        given: The classes of other data.
        name: What those data are called in the config.

    Raises:
        UserError: They differ, so that the same label means two things.
    """
    if tuple(trained) == tuple(given):
        return
    label, one, other = next((i, x, y) for i, (x, y) in enumerate(zip_longest(trained, given)) if x != y)
    raise UserError(f'{name}: label {label} is {other!r} there and {one!r} in training ({len(given)} classes and '
                    f'{len(trained)}); give both the same classes, or the same class folders')


def check_checkpoint_classes(checkpoint: Mapping[str, Any], dataset: Any) -> None:
    """Compare the classes that a checkpoint was trained on, where it says, with those that it is to be scored on.

    Files from elsewhere may spell names differently; so only a name that both have under different labels counts.

    Raises:
        UserError: There is one.
    """
    trained = ((checkpoint.get('meta') or {}).get('dataset_meta') or {}).get('classes') or ()
    given = dataset.metainfo.get('classes') or ()
    if any(own != other and other in trained for own, other in zip(trained, given, strict=False)):
        check_classes(trained, given, 'test_dataloader')
