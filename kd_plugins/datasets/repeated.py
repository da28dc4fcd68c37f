"""A few augmentations of each image, again and again."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from kd_plugins.errors import UserError
from kd_plugins.registry import DATASETS
from kd_plugins.utils.random import preserved_rng


@DATASETS.register_module()
class RepeatedViews:
    """A data set that augments an image in one of a few ways, so that a teacher's ``cache`` can hold its features.

    With random crops no input comes twice, and a cache is of no use. Here each image has ``views`` augmentations, which
    follow from its index and ``seed`` alone, and epoch e has those of number ``e % views``::

        train_dataloader = dict(dataset=dict(
            _delete_=True, type='kd_plugins.RepeatedViews', views=4, dataset=_base_.train_dataloader.dataset))

    With ``teacher=dict(..., cache='data/cache')`` the teacher runs in the first ``views`` epochs, and in later runs not
    at all. Training needs the ``ReseedHook``, and this data set around all others (as ``ConcatDataset``).

    Args:
        dataset: Config dict of the data set, with its pipeline.
        views: Number of augmentations of an image.
        seed: Seed of the augmentations; the same in all runs that share a cache.

    Raises:
        UserError: ``views`` or ``seed`` is out of range, or a transform of the pipeline mixes in images of before, as
            mmdet's ``CachedMosaic`` and ``CachedMixUp``, so that no view would repeat.
    """

    def __init__(self, dataset: Mapping[str, Any], views: int, seed: int = 0) -> None:
        if not isinstance(views, int) or views < 1 or not isinstance(seed, int) or seed < 0:
            raise UserError(
                f'RepeatedViews: views={views!r}, seed={seed!r}; expected whole numbers of at least 1 and of at least 0'
            )
        self.dataset = DATASETS.build(dataset)
        for step in steps_in(self.dataset):
            if hasattr(step, 'results_cache'):
                raise UserError(
                    f'RepeatedViews: {type(step).__name__} mixes in images that came before, so that no view repeats: '
                    "use mmdet's Mosaic and MixUp in a MultiImageMixDataset, or leave it out"
                )
        self.metainfo = self.dataset.metainfo
        self.views, self._seed = views, seed
        self._view: int | None = None

    def set_epoch(self, epoch: int, seed: int) -> None:
        """Take an epoch's augmentations; the run's seed does not matter."""
        self._view = epoch % self.views

    def update_skip_type_keys(self, skip_type_keys: Sequence[str]) -> None:
        """Leave out steps of the pipeline, as ``YOLOXModeSwitchHook`` does late in training."""
        self.dataset.update_skip_type_keys(skip_type_keys)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.dataset)

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Return the data set's dict of an image."""
        return self.dataset.get_data_info(idx)

    def __getitem__(self, idx: int) -> Any:
        """Return a sample, in its first view before :meth:`set_epoch`."""
        if not -len(self) <= idx < len(self):
            raise IndexError(idx)  # ends a loop over the data set
        idx %= len(self)
        with preserved_rng():
            seed = int(np.random.SeedSequence((self._seed, idx, self._view or 0)).generate_state(1)[0])
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            return self.dataset[idx]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return several samples, as torch's data loader asks for them.

        Raises:
            UserError: :meth:`set_epoch` was never called.
        """
        if self._view is None:
            raise UserError(
                'RepeatedViews: no epoch was set, so every epoch would be the same: add '
                "reseed=dict(type='kd_plugins.ReseedHook') to default_hooks"
            )
        return [self[i] for i in indices]


def steps_in(part: Any) -> Iterator[Any]:
    """Yield the transforms of a data set, a pipeline, or a transform of several, and of what is inside them."""
    if isinstance(part, (list, tuple)):
        for step in part:
            yield step
            yield from steps_in(step)
        return
    for name in ('dataset', 'datasets', 'pipeline', 'transforms'):
        yield from steps_in(getattr(part, name, ()))
