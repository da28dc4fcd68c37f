"""What losses need of the data samples of a batch: classes, and places in the training set."""

import logging
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from kd_plugins.errors import UserError


def labels_of(data_samples: Sequence[Any] | None, who: str) -> Tensor:
    """Return the class labels (N,) of the images, each sample's ``gt_label``.

    Args:
        data_samples: Annotations of the images.
        who: What needs them, for the message.

    Raises:
        UserError: An image has no label, several, or soft ones.
    """
    labels = []
    for sample in [None] if data_samples is None else data_samples:
        label, mixed = getattr(sample, 'gt_label', None), _is_mixed(sample)
        if mixed or not isinstance(label, Tensor) or label.numel() != 1:
            found = f'{label.numel()} numbers' if isinstance(label, Tensor) else label
            raise UserError(
                f'{who} needs images of one class each, a gt_label of one number in each data sample, got '
                f'{"a gt_score" if mixed else found}: use it for single-label classification, without mixed images '
                '(Mixup, CutMix) or soft labels'
            )
        labels.append(label.flatten())
    return torch.cat(labels)


def indices_of(data_samples: Sequence[Any] | None, count: int | None, who: str) -> list[int]:
    """Return the indices of the images in the training set, each sample's ``sample_idx``.

    Args:
        data_samples: Annotations of the images.
        count: Number of images of the training set, where it is known.
        who: What needs them, for the message.

    Raises:
        UserError: An image has no index or one out of range, is mixed of several, or ``count`` is unknown.
    """
    if count is None:
        raise UserError(
            f"{who} needs the number of images of the training set, which only the project's commands and "
            'DistillationHook find: give loss=dict(num_samples=...)'
        )
    indices = []
    for sample in [None] if data_samples is None else data_samples:
        index, mixed = getattr(sample, 'sample_idx', None), _is_mixed(sample)
        if mixed or not isinstance(index, Integral):
            raise UserError(
                f'{who} needs the index of each image in the training set, sample_idx in the metainfo of its data '
                f'sample, got {"a mixed image" if mixed else index}: '
                + ('do not mix images' if mixed else 'add it to the meta_keys of the last step of the pipeline')
            )
        if not 0 <= int(index) < count:
            raise UserError(
                f'{who}, for num_samples={count}: the sample_idx of an image is {index}, expected 0 to {count - 1}: '
                'give the size of the training set'
            )
        indices.append(int(index))
    return indices


def note_several_classes(data_samples: Sequence[Any] | None, who: str, remedy: str) -> None:
    """Log where an image has not one class, which a softmax takes for granted."""
    samples = () if data_samples is None else data_samples  # a tensor of labels is neither true nor false
    labels = [x for sample in samples if isinstance(x := getattr(sample, 'gt_label', None), Tensor)]
    if any(x.numel() != 1 for x in labels):
        print_log(
            f'{who} compares a softmax, whose classes exclude each other, but images have several (or none): {remedy} '
            'compares each class by itself',
            'current',
            logging.WARNING,
        )


def _is_mixed(sample: Any) -> bool:
    return getattr(sample, 'gt_score', None) is not None
