"""Checks of the classes that label maps hold, while a segmentor learns from them or is scored by them."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from kd_plugins.errors import UserError
from kd_plugins.registry import HOOKS
from kd_plugins.utils.models import unwrapped

_BATCHES = 50  # whose classes are compared


@HOOKS.register_module()
class LabelMapHook(Hook):
    """Compares the classes of each batch's label maps with those of the segmentor's head.

    A class that the head lacks is an index out of range in one loss, which on a GPU ends the process without a word of
    the data; another clamps it, and a score counts its pixels as predicted wrongly. Where the first 50 batches of a
    training hold one class alone, beside the value that is ignored, that is logged: 255 in a mask of 0 and 255 is no
    class. The commands add this hook to runs of mmseg; ``default_hooks=dict(labelmap=None)`` removes it.

    Raises:
        UserError: A label map has a class that the head does not have.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Check the labels of a batch; once, those of the first batches together."""
        _check(runner.model, data_batch)
        if runner.iter >= _BATCHES or len(self._seen) > 1:
            return
        for _, labels, _, ignored in _labels(runner.model, data_batch):
            classes = labels[labels != ignored]
            if len(classes):
                self._seen |= {int(classes.min()), int(classes.max())}
        if runner.iter == _BATCHES - 1 and len(self._seen) == 1:
            print_log(
                f'the label maps of the first {_BATCHES} batches have class {self._seen.pop()} alone, beside what is '
                'ignored: a mask has to hold 0 and 1, not 0 and 255, and reduce_zero_label takes 0 out',
                'current',
                logging.WARNING,
            )

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Check the labels of a batch."""
        _check(runner.model, data_batch)

    before_test_iter = before_val_iter


def _labels(model: nn.Module, data_batch: Any) -> list[tuple[str, Any, int, int | None]]:
    """Return for each label map of a batch its file, the classes, their number and the value that is ignored."""
    model = unwrapped(model)
    head = getattr(getattr(model, 'student', model), 'decode_head', None)
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    count, ignored = getattr(head, 'num_classes', None), getattr(head, 'ignore_index', None)
    samples = data_batch.get('data_samples') if isinstance(data_batch, Mapping) else None
    if count == 1 and getattr(head, 'out_channels', None) == 1:  # a score of class 1 alone, of labels 0 and 1
        count = 2
    if not isinstance(count, int) or not isinstance(samples, Sequence):
        return []
    return [
        (sample.get('seg_map_path') or sample.get('img_path'), sample.gt_sem_seg.data, count, ignored)
        for sample in samples
        if 'gt_sem_seg' in sample
    ]


def _check(model: nn.Module, data_batch: Any) -> None:
    for path, labels, count, ignored in _labels(model, data_batch):
        wrong = labels >= count
        if ignored is not None:
            wrong &= labels != ignored
        if wrong.any():
            rest = '' if ignored is None else f', or {ignored} where there is none'
            raise UserError(
                f'{path}: label map has class {int(labels[wrong].min())}, expected 0 to {count - 1}, the classes of '
                f'decode_head{rest}: convert its numbers (of Cityscapes, by mmseg, to labelTrainIds), or correct '
                'num_classes or reduce_zero_label'
            )
