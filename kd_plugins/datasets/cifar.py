"""CIFAR-10 and CIFAR-100 in the official pickle layout, official or re-encoded."""

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from mmengine import dist
from mmengine.fileio import exists, get, join_path
from mmengine.logging import MMLogger
from mmpretrain import datasets as mmpretrain_datasets

from kd_plugins.data_files import fetch
from kd_plugins.datasets.corruption import refuse_test, report, rewrite
from kd_plugins.errors import UserError
from kd_plugins.registry import DATASETS
from kd_plugins.unpickling import PlainUnpickler


@DATASETS.register_module()
class CIFAR10(mmpretrain_datasets.CIFAR10):
    """CIFAR-10 as mmpretrain reads it, also from a folder whose files are not the official bytes.

    Expects ``data_root/cifar-10-batches-py`` with ``data_batch_1`` to ``data_batch_5`` and ``test_batch``: pickled
    dicts with ``data``, (N, 3072) uint8, each image's red, green and blue plane, and ``labels``, N integers.
    Where that folder is missing and ``download`` is true, the official archive is fetched.
    A file whose MD5 is not the official one is used, with one logged warning per split; only arrays and plain values
    are unpickled. Samples hold ``img``, (32, 32, 3) uint8 in RGB, and ``gt_label``.

    Args:
        label_noise: ``dict(rate=0.4, include_true=True, seed=0)``: wrong labels, see
            :func:`~kd_plugins.datasets.corruption.noisy_labels`.
        imbalance: ``dict(gamma=0.2, most=None, least=None, seed=0)``: rare classes, see
            :func:`~kd_plugins.datasets.corruption.kept_samples`.
        validation: ``dict(size=5000, seed=0, part='train')`` leaves that many samples out,
            ``part='val'`` gives these alone, see :func:`~kd_plugins.datasets.corruption.held_out`.
        **kwargs: mmpretrain's. ``indices`` applies last: ``indices=20000`` takes the first 20,000 of what is left (all
            where fewer are), each with the label that it has in the whole corrupted set.

    Raises:
        UserError: The folder or one of its files is missing, cannot be fetched, or does not hold what is expected;
            or a test split is to be corrupted.

    References:
        1. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009.
        2. open-mmlab/mmpretrain, ``mmpretrain/datasets/cifar.py`` (layout, archive and MD5 sums).
    """

    label_key = 'labels'
    channel_order = 'RGB'  # of the arrays that samples hold

    def __init__(
        self,
        *args: Any,
        label_noise: Mapping[str, Any] | None = None,
        imbalance: Mapping[str, Any] | None = None,
        validation: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        options = dict(label_noise=label_noise, imbalance=imbalance, validation=validation)
        self._corruption = {key: value for key, value in options.items() if value is not None}
        self.corruption: dict[str, Any] | None = None
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Return one dict per image, in the order of the files."""
        if self._corruption and self.split != 'train':
            refuse_test(type(self).__name__)
        if dist.is_main_process():
            self._provide()
        dist.barrier()
        folder = join_path(self._root, self.base_folder)
        files = {join_path(folder, name): md5 for name, md5 in self._split_list}
        missing = [path for path in files if not exists(path)]
        if missing:
            raise UserError(f'{", ".join(missing)}: missing; {self._remedy}')
        # With indices=10000 the first file is enough; corruption looks at the whole split.
        whole = self._corruption or not isinstance(self._indices, int) or self._indices < 0
        infos: list[dict[str, Any]] = []
        read = changed = 0
        for path, md5 in files.items():
            if not whole and len(infos) >= self._indices:
                break
            content = get(path)
            read, changed = read + 1, changed + (hashlib.md5(content, usedforsecurity=False).hexdigest() != md5)
            infos += [
                {'img': img.reshape(3, 32, 32).transpose(1, 2, 0), 'gt_label': label}
                for img, label in zip(*self._unpickled(path, content), strict=True)
            ]
        if changed:
            MMLogger.get_current_instance().warning(
                f'{folder}: {changed} of {read} files of split {self.split} are not the official bytes (MD5); '
                'accuracies cannot be compared with published ones'
            )
        if not self._corruption:
            return infos
        infos, self.corruption = rewrite(infos, len(self.CLASSES), **self._corruption)
        return infos

    def full_init(self) -> None:
        """Load the samples, and complete what ``corruption.json`` reports of those that ``indices`` leaves."""
        if not self._fully_initialized:
            super().full_init()
            if self.corruption is not None:
                self.corruption = report(self.corruption, [self.get_data_info(i) for i in range(len(self))])

    @property
    def _root(self) -> str:
        return self.data_prefix['root'].rstrip('/')

    @property
    def _split_list(self) -> list[list[str]]:
        return self.train_list if self.split == 'train' else self.test_list

    @property
    def _remedy(self) -> str:
        command = f'kd-prepare-data {type(self).__name__.lower()} --root {self._root}'
        return f'complete or move away {self.base_folder}/, then run: {command}'

    def _provide(self) -> None:
        root = self._root
        if exists(join_path(root, self.base_folder)):
            return
        expected = f'expected {self.base_folder}/ with {", ".join(name for name, _ in self._split_list)}'
        if not self.download:
            raise UserError(f'{root}: {expected}, found no such folder; {self._remedy}')
        try:
            fetch(self.url, root, self.tgz_md5, self.filename)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f'{root}: {expected}, and {self.url} could not be fetched ({error}); unpack it there by hand'
            ) from error

    def _unpickled(self, path: str, content: bytes) -> tuple[np.ndarray, list[int]]:
        try:
            entry = PlainUnpickler(io.BytesIO(content), encoding='latin1').load()
        except Exception as error:  # a damaged pickle raises almost anything
            raise UserError(f'{path}: not a whole pickle of plain arrays ({error}); {self._remedy}') from error
        classes = len(self.CLASSES)
        try:
            data, labels = entry['data'], [int(label) for label in entry[self.label_key]]
            if data.dtype == np.uint8 and data.shape == (len(labels), 3072) and set(labels) <= set(range(classes)):
                return data, labels
            got = f'{data.dtype} {data.shape} and {len(labels)} labels, {min(labels)} to {max(labels)}'
        except (TypeError, KeyError, ValueError, AttributeError):
            got = ', '.join(map(str, entry)) if isinstance(entry, dict) else type(entry).__name__
        raise UserError(
            f'{path}: expected a dict with data, uint8 (N, 3072), and {self.label_key}, N integers below {classes}; '
            f'got {got}; {self._remedy}'
        )


@DATASETS.register_module()
class CIFAR100(CIFAR10, mmpretrain_datasets.CIFAR100):
    """CIFAR-100 with its 100 fine labels; see :class:`CIFAR10`.

    Expects ``data_root/cifar-100-python`` with ``train`` and ``test``, whose labels are named ``fine_labels``.
    """

    label_key = 'fine_labels'
