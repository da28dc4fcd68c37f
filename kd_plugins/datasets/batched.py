"""Small images held in memory and augmented a whole batch at once."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmpretrain.structures import DataSample
from numpy.typing import NDArray

from kd_plugins.errors import UserError
from kd_plugins.registry import DATASETS, FUNCTIONS
from kd_plugins.utils.datasets import corruptions


@FUNCTIONS.register_module()
def whole_batch(batch: dict[str, Any] | Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Collate batches of :class:`BatchedImages`: return a single one as it is, concatenate several."""
    if isinstance(batch, dict):
        return batch
    return dict(
        inputs=torch.cat([x['inputs'] for x in batch]),
        data_samples=[sample for x in batch for sample in x['data_samples']],
    )


@DATASETS.register_module()
class BatchedImages:
    """Images of one size, cropped and flipped a batch at a time.

    The data loader needs ``collate_fn=dict(type='kd_plugins.whole_batch')``, and training the ``ReseedHook``.

    The augmentation is that of mmpretrain's ``RandomCrop(crop_size=(H, W), padding=padding)`` followed by
    ``RandomFlip(prob=flip_prob, direction='horizontal')``: black border, both offsets uniform over 0 to 2 * padding,
    all three draws independent. An epoch's draws are one table over all images that follows from seed and epoch
    alone. So they depend neither on the order of the images nor on the number of processes or workers, a resumed
    run repeats them, and an image drawn twice in an epoch looks the same twice.

    A batch is ``dict(inputs=..., data_samples=...)``: (B, 3, H, W) uint8, and B samples with ``gt_label``, (1,) int64,
    and the image's index as ``sample_idx``; images and labels are on ``device``.

    Args:
        dataset: Config dict of a data set whose ``get_data_info(i)`` has ``img``, (H, W, 3) uint8, and an integer
            ``gt_label``. Its pipeline is not run.
        padding: Width of the black border that a crop may reach into.
        flip_prob: Probability of a horizontal flip.
        device: Where images and labels are held; other than 'cpu' only with ``num_workers=0``, without pin_memory.
        replay: Draw again in epoch e what was drawn in epoch e % replay; None never repeats.
        seed: Seed of the draws, the same in all processes; None: the one that :meth:`set_epoch` gets.

    Raises:
        UserError: An argument is out of range, or the data set is empty, has no such entries or unequal sizes.
    """

    def __init__(
        self,
        dataset: Mapping[str, Any],
        padding: int = 0,
        flip_prob: float = 0.0,
        device: str = 'cpu',
        replay: int | None = None,
        seed: int | None = None,
    ) -> None:
        if padding < 0 or not 0 <= flip_prob <= 1 or (replay is not None and replay < 1) or (seed or 0) < 0:
            raise UserError(
                f'BatchedImages: padding={padding}, flip_prob={flip_prob}, replay={replay}, seed={seed}; '
                'expected padding and seed of at least 0, a probability, and replay of at least 1 or None'
            )
        source = DATASETS.build(dataset)
        infos = [source.get_data_info(i) for i in range(len(source))]
        kinds = sorted(f'{x} {y}'.strip() for x, y in {_kind(info) for info in infos})
        if len(kinds) != 1 or not re.fullmatch(r'uint8 \(\d+, \d+, 3\)', kinds[0]):
            raise UserError(
                f'BatchedImages: the data set holds {" and ".join(kinds[:3]) or "nothing"}; expected img, '
                'uint8 (H, W, 3) of one size, and gt_label; use the data set itself, with a pipeline'
            )
        self.metainfo = source.metainfo
        self.corruption_reports = [*corruptions(source)]  # for the CorruptionHook; the source itself is not kept
        self._labels = torch.tensor([info['gt_label'] for info in infos], dtype=torch.int64, device=device)[:, None]
        images = torch.from_numpy(np.stack([info['img'] for info in infos])).permute(0, 3, 1, 2)
        height, width = images.shape[2:]
        images = F.pad(images, [padding] * 4).contiguous().to(device)
        # Every crop of every image, by the index of its first byte: one index_select copies a batch row by row,
        # ten times as fast as indexing with rows and columns.
        planes, row = images[0].numel(), width + 2 * padding
        self._crops = images.as_strided(
            ((len(infos) - 1) * planes + 2 * padding * (row + 1) + 1, 3, height, width), (1, planes // 3, row, 1)
        )
        self._row, self._corner = row, np.arange(len(infos)) * planes
        self._padding, self._flip_prob, self.views, self._seed = padding, flip_prob, replay, seed
        self._start = self._corner + padding * (row + 1)
        self._flip: NDArray[np.bool_] = np.zeros(len(infos), bool)
        self._ready = not padding and not flip_prob

    def set_epoch(self, epoch: int, seed: int) -> None:
        """Draw an epoch's crops and flips; without padding and flips nothing is drawn."""
        if not self._padding and not self._flip_prob:
            return
        seed = seed if self._seed is None else self._seed
        epoch = epoch if self.views is None else epoch % self.views
        rng = np.random.default_rng((seed, epoch, 1))  # a stream of its own: PKSampler draws from (seed, epoch)
        down, right = rng.integers(2 * self._padding + 1, size=(2, len(self)))
        self._start = self._corner + down * self._row + right
        self._flip = rng.random(len(self)) < self._flip_prob
        self._ready = True

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Return a batch of one image, not augmented before the first :meth:`set_epoch`."""
        return self._batch([i])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return a batch, as torch's data loader asks for it.

        Raises:
            UserError: The images are to be augmented, but :meth:`set_epoch` was never called.
        """
        if not self._ready:
            raise UserError(
                'BatchedImages: no epoch was set, so every epoch would draw the same: add '
                "reseed=dict(type='kd_plugins.ReseedHook') to default_hooks"
            )
        return self._batch(indices)

    def _on_device(self, indices: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(indices).to(self._crops.device)

    def _batch(self, indices: Sequence[int]) -> dict[str, Any]:
        chosen = np.array(indices)
        flip = self._flip[chosen]
        # Images to flip are sorted to the end: copying a slice is several times as fast as copying scattered ones.
        order = flip.argsort()
        inputs = self._crops.index_select(0, self._on_device(self._start[chosen[order]]))
        flipped = inputs[len(flip) - flip.sum() :]
        flipped.copy_(flipped.flip(3))
        inputs = inputs.index_select(0, self._on_device(order.argsort()))
        samples = []
        for label, i in zip(self._labels[torch.from_numpy(chosen)].unbind(), indices, strict=True):
            # The same as by set_gt_label() and set_field(), in a fifth of their time, which was half of a batch's.
            sample = DataSample.__new__(DataSample)
            vars(sample).update(
                _metainfo_fields={'sample_idx'}, _data_fields={'gt_label'}, sample_idx=i, gt_label=label
            )
            samples.append(sample)
        return dict(inputs=inputs, data_samples=samples)


def _kind(info: Mapping[str, Any]) -> tuple[Any, Any]:
    missing = [f'no {key}' for key in ('img', 'gt_label') if key not in info]
    return (' and '.join(missing), '') if missing else (info['img'].dtype, info['img'].shape)
