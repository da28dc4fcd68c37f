"""Market-1501, person re-identification, in the official layout."""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.fileio import exists, isdir, join_path, list_dir_or_file
from mmengine.logging import MMLogger
from mmpretrain.datasets import BaseDataset

from kd_plugins.data_files import is_image
from kd_plugins.errors import UserError
from kd_plugins.registry import DATASETS

_QUERY, _GALLERY = 'query', 'bounding_box_test'
_FOLDERS = {'train': ['bounding_box_train'], 'test': [_QUERY, _GALLERY], 'query': [_QUERY], 'gallery': [_GALLERY]}
_NAME = re.compile(r'(-1|\d+)_c(\d+)s\d+_')
_EXAMPLE = '0002_c1s1_000451_03.jpg'
_JUNK, _DISTRACTOR = -1, 0


@DATASETS.register_module()
class Market1501(BaseDataset):
    """Market-1501; an image's name gives its person and camera, ``0002_c1s1_000451_03.jpg`` person 2 at camera 1.

    Expects the folders ``bounding_box_train``, ``query`` and ``bounding_box_test`` (the gallery) under ``data_root``
    and takes every image directly in them, sorted by name; other files are logged. Images of the gallery
    that the authors call junk (identity -1) are left out, since they count neither for nor against a ranking;
    distractors (identity 0) stay.

    A sample holds ``img_path``, ``identity`` and ``camera``, both as in the name, ``is_query``, and in ``train``
    ``gt_label``: the index of the identity among the sorted identities. There ``metainfo['classes']`` are the
    identities as text, whatever classes are given; the other splits, which show other people, have no classes.

    Args:
        data_root: Folder that holds the three folders.
        split: ``train``; ``query``; ``gallery``; or ``test``, the query and then the gallery in one data set.
        pipeline: Transforms, as in mmpretrain.
        **kwargs: As in :class:`mmpretrain.datasets.BaseDataset`. ``test_mode`` is False for ``train`` alone unless
            given.

    Raises:
        UserError: The split is unknown; the root or a folder is missing, or a folder holds no image to use; a name
            does not give identity and camera; an image is there twice; junk or a distractor lies outside the gallery.

    References:
        1. Zheng, Shen, Tian, Wang, Wang and Tian: Scalable Person Re-identification: A Benchmark, ICCV 2015.
    """

    def __init__(self, data_root: str = '', split: str = 'train', pipeline: Sequence = (), **kwargs: Any) -> None:
        if split not in _FOLDERS:
            raise UserError(f"Market1501: split '{split}' is unknown; expected one of {', '.join(_FOLDERS)}")
        self.split = split
        super().__init__('', data_root=data_root, pipeline=pipeline, **{'test_mode': split != 'train', **kwargs})

    def load_data_list(self) -> list[dict]:
        """Return one dict per image, folder by folder in the order of the names."""
        root = self.img_prefix.rstrip('/') or '.'
        fetch = f'kd-prepare-data market1501 --root {root}'
        if not exists(root):
            raise UserError(f'{root}: Market-1501 is missing; set data_root, or run: {fetch}')
        records = []
        for name in _FOLDERS[self.split]:
            folder = join_path(root, name)
            remedy = f'restore it from the archive, or move {root} away and run: {fetch}'
            if not isdir(folder):
                raise UserError(f'{folder}: folder is missing; {remedy}')
            read = list(_read(folder, name))
            if not read:
                raise UserError(f'{folder}: holds no image to use, expected names as {_EXAMPLE}; {remedy}')
            records += read
        if self.split == 'train':
            identities = sorted({record['identity'] for record in records})
            labels = {identity: label for label, identity in enumerate(identities)}
            for record in records:
                record['gt_label'] = labels[record['identity']]
            self._metainfo['classes'] = tuple(f'{identity:04}' for identity in identities)
        return records


def _read(folder: str, name: str) -> Iterator[dict]:
    files = sorted(list_dir_or_file(folder, list_dir=False))
    images = [file for file in files if is_image(file)]
    if others := sorted({*files} - {*images}):  # the official archive holds a Thumbs.db
        MMLogger.get_current_instance().info(
            f'{folder}: {len(others)} of {len(files)} files are left out, since they are not images, as {others[0]}'
        )
    seen: dict[str, str] = {}
    for file in images:
        other = seen.setdefault(os.path.splitext(file)[0], file)
        if other != file:
            raise UserError(f'{folder}: {other} and {file} are the same image, which would count twice; move one away')
        path = join_path(folder, file)
        found = _NAME.match(file)
        if not found:
            raise UserError(
                f'{path}: the name does not give identity and camera, expected one as {_EXAMPLE}; move the file away'
            )
        identity, camera = map(int, found.groups())
        if name != _GALLERY and identity in (_JUNK, _DISTRACTOR):
            kind = 'junk' if identity == _JUNK else 'a distractor'
            raise UserError(
                f'{path}: identity {identity} is {kind}, which belongs in {_GALLERY}/ only; move the file away'
            )
        if identity != _JUNK:
            yield {'img_path': path, 'identity': identity, 'camera': camera, 'is_query': name == _QUERY}
