"""Images decoded and resized once, for all epochs and runs."""

import fcntl
import hashlib
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import Compose
from mmengine.logging import print_log
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader

from kd_plugins.errors import UserError
from kd_plugins.registry import DATASETS
from kd_plugins.utils.cores import usable_cores
from kd_plugins.utils.random import preserved_rng

_FEW = 200  # images that one process reads as fast as several start


@DATASETS.register_module()
class ResizedImages:
    """A data set whose images are decoded once, and kept resized in a memory-mapped file.

    Where decoding takes most of the loader's time (photographs), wrap the data set::

        train_dataloader = dict(dataset=dict(
            _delete_=True, type='kd_plugins.ResizedImages', edge=160, dataset=_base_.train_dataloader.dataset))

    The first run writes the file, with a progress bar and as many processes as there are cores; one that was stopped
    goes on where it ended. Runs and processes share it. Its name is a hash of the images' paths, sizes and times of
    change, of ``edge`` and of how images are loaded, so that a changed image is never taken from an old file; old files
    stay until they are deleted. An image takes 3 * height * width bytes, about 100 KB for an edge of 160.

    The rest of the pipeline works on the resized image: a small random crop of it has less detail than one of the
    original. An edge of 1.4 times the crop's size or more keeps most of it.

    Samples are those of the data set otherwise. Unreadable images are left out as in
    :class:`kd_plugins.UnlabelledImages`.

    Args:
        dataset: Config dict of a data set without boxes or masks, whose pipeline begins with ``kd_plugins.LoadImage``
            or ``LoadImageFromFile``.
        edge: Length of the shorter side in pixels; smaller images are kept as they are.
        cache: Folder of the files.

    Raises:
        UserError: ``edge`` is out of range, the pipeline begins otherwise, a sample has boxes or is no image of three
            channels, or an image is missing or unreadable.
    """

    def __init__(self, dataset: Mapping[str, Any], edge: int, cache: str = 'data/resized') -> None:
        if not isinstance(edge, int) or edge < 1:
            raise UserError(f'ResizedImages: edge={edge!r}; expected the length of the shorter side in pixels')
        self.dataset = DATASETS.build(dataset)
        name = type(self.dataset).__name__
        if not hasattr(self.dataset, 'pipeline') and {'dataset', 'datasets'} & {*vars(self.dataset)}:
            raise UserError(f'ResizedImages: {name} wraps what has a pipeline; put ResizedImages inside it')
        load, *rest = getattr(getattr(self.dataset, 'pipeline', None), 'transforms', None) or [None]
        if not isinstance(load, LoadImageFromFile) or load.to_float32:
            begins = f'begins with {type(load).__name__}' if load is not None else 'is empty'
            raise UserError(
                f'ResizedImages: the pipeline of {name} {begins}; expected kd_plugins.LoadImage, without to_float32'
            )
        self.pipeline = Compose(rest)
        self.metainfo = self.dataset.metainfo
        self._pixels: np.ndarray | None = None
        self._read = _Reader(self.dataset, load, edge)
        self._path, shapes = _build(self._read, Path(cache))
        self._shapes = shapes
        self._starts = np.append(0, shapes.prod(1, dtype=np.int64).cumsum())
        if unreadable := int((shapes[:, 0] == 0).sum()):
            _ = self._read[int(shapes[:, 0].argmin())]  # raises where only an earlier run left it out
            print_log(
                f'ResizedImages: {unreadable} of {len(shapes)} images are unreadable; training takes others instead',
                'current',
                logging.WARNING,
            )

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mapping out: pickled, it would be the whole file."""
        return vars(self) | dict(_pixels=None)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._shapes)

    def full_init(self) -> None:
        """Do nothing: mmengine's ``ConcatDataset`` and ``RepeatDataset`` call this, and all is read already."""

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Return the data set's dict of an image, with its pixels as ``img``, (H, W, 3) uint8."""
        if self._pixels is None:
            self._pixels = np.memmap(self._path, np.uint8, 'r')
        height, width, _ = shape = tuple(map(int, self._shapes[idx]))
        pixels = np.array(self._pixels[self._starts[idx] : self._starts[idx + 1]]).reshape(shape)
        size = (height, width)
        return self.dataset.get_data_info(idx) | dict(img=pixels, img_shape=size, ori_shape=size)

    def get_cat_ids(self, idx: int) -> list[int]:
        """Return the classes of an image, as mmengine's ``ClassBalancedDataset`` asks for them."""
        return self.dataset.get_cat_ids(idx)

    def __getitem__(self, idx: int) -> Any:
        """Return a sample, or the next one whose image could be read.

        Raises:
            UserError: No image could be read.
        """
        if not -len(self) <= idx < len(self):
            raise IndexError(idx)  # ends a loop over the data set
        whole = getattr(self.dataset, 'test_mode', False)
        if whole and not self._shapes[idx, 0]:
            raise UserError(f'ResizedImages: image {idx} cannot be read, and a test set must be whole')
        for step in range(1 if whole else len(self)):
            other = (idx + step) % len(self)
            if self._shapes[other, 0] and (sample := self.pipeline(self.get_data_info(other))) is not None:
                return sample
        raise UserError(f'ResizedImages: none of the {len(self)} images can be read: see the warnings above')


class _Reader:
    """Decodes and resizes the images of a data set; one that is unreadable is empty."""

    def __init__(self, dataset: Any, load: LoadImageFromFile, edge: int) -> None:
        self._dataset, self._load, self._edge = dataset, load, edge

    def key(self) -> str:
        """Return a hash of all that the pixels depend on."""
        options = (self._edge, self._load.color_type, self._load.imdecode_backend)
        digest = hashlib.sha256(repr(options).encode())
        for index in range(len(self._dataset)):
            info = self._dataset.get_data_info(index)
            if 'img_path' not in info or 'instances' in info:
                raise UserError(
                    f'ResizedImages: the samples of {type(self._dataset).__name__} have '
                    f'{"boxes, which would not be resized" if "instances" in info else "no img_path"}: use it without '
                    'ResizedImages'
                )
            path = os.path.abspath(info['img_path'])
            try:
                status = os.stat(path)
            except OSError as error:
                raise UserError(f'{path}: {error.strerror}; expected an image, check data_root') from None
            digest.update(f'\n{path} {status.st_size} {status.st_mtime_ns}'.encode(errors='surrogateescape'))
        return digest.hexdigest()[:32]

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> np.ndarray:
        info = self._dataset.get_data_info(index)
        loaded = self._load(info)
        if loaded is None:
            return np.empty((0, 0, 3), np.uint8)
        image = loaded['img']
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(
                f'{info["img_path"]}: {image.dtype} of shape {image.shape}; expected uint8 (H, W, 3), as '
                "color_type='color' loads it"
            )
        height, width = image.shape[:2]
        scale = self._edge / min(height, width)
        if scale >= 1:
            return image
        return cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)


def _as_it_is(image: Any) -> Any:
    return image


def _build(read: _Reader, cache: Path) -> tuple[Path, np.ndarray]:
    """Complete the files of a data set; return that of the pixels, and the shapes (N, 3) of the images."""
    key = read.key()
    pixels, shapes = cache / f'{key}.pixels', cache / f'{key}.shapes'
    if cache.exists() and not cache.is_dir():
        raise UserError(f'{cache}: expected a folder for the resized images, found a file; name another as cache')
    with suppress(OSError):  # there are none
        if len(found := _whole(pixels, shapes)) >= len(read):  # also where this user cannot write
            return pixels, found[: len(read)]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for path in (pixels, shapes):
            path.touch()
        lock_file = (cache / f'{key}.lock').open('w')
    except OSError as error:
        raise UserError(f'{cache}: {error.strerror}; name another folder for the resized images as cache') from error
    with lock_file as lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)  # other processes wait, and then find all images
        found = _whole(pixels, shapes)
        if (done := len(found)) < len(read):
            os.truncate(shapes, 12 * done)
            os.truncate(pixels, int(found.prod(1, dtype=np.int64).sum()))
            _append(read, done, pixels, shapes)
            found = np.fromfile(shapes, np.int32).reshape(-1, 3)
    return pixels, found[: len(read)]


def _whole(pixels: Path, shapes: Path) -> np.ndarray:
    """Return the shapes (N, 3) of the images that both files hold: a killed process can leave either ahead."""
    found = np.fromfile(shapes, np.int32, shapes.stat().st_size // 12 * 3).reshape(-1, 3)
    return found[found.prod(1, dtype=np.int64).cumsum() <= pixels.stat().st_size]


def _append(read: _Reader, done: int, pixels: Path, shapes: Path) -> None:
    left = range(done, len(read))
    workers = usable_cores() if len(left) > _FEW else 0
    print_log(f'ResizedImages: resizes {len(left)} images once, into {pixels}', 'current')
    with preserved_rng(), pixels.open('ab') as pixel_file, shapes.open('ab') as shape_file:
        loader: DataLoader = DataLoader(
            read,  # type: ignore[arg-type]  # a sequence is a data set
            batch_size=None,
            sampler=left,
            num_workers=workers,
            collate_fn=_as_it_is,
        )
        for image in track(loader, 'resizing', len(left), console=Console(stderr=True)):
            pixel_file.write(np.ascontiguousarray(image).data)
            shape_file.write(np.array(image.shape, np.int32).tobytes())
