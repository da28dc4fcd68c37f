"""STL-10 in its official binary layout."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.fileio import exists, get, join_path
from mmengine.logging import MMLogger
from mmpretrain.datasets import BaseDataset
from mmpretrain.datasets.utils import check_md5

from kd_plugins.errors import UserError
from kd_plugins.registry import DATASETS

_FOLDER, _SIDE = 'stl10_binary', 96
# The official bytes, as torchvision.datasets.STL10 names them too.
_MD5 = {
    'train_X.bin': '918c2871b30a85fa023e0c44e0bee87f',
    'train_y.bin': '5a34089d4802c674881badbb80307741',
    'test_X.bin': '7f263ba9f9e0b06b93213547f721ac82',
    'test_y.bin': '36f9794fa4beb8a2c72628de14fa638e',
}


@DATASETS.register_module()
class STL10(BaseDataset):
    """STL-10: 5,000 training and 8,000 test images of 96 x 96 pixels in 10 classes.

    Expects ``data_root/stl10_binary`` with ``<split>_X.bin``, for each image its red, green and blue plane, each
    plane **column by column**, one byte a pixel, and ``<split>_y.bin``, one byte an image: its class from 1 to 10.
    Samples hold ``img``, (96, 96, 3) uint8 in BGR, as OpenMMLab loads files, and ``gt_label`` from 0 to 9. A file whose
    MD5 is not the official one is used, with one logged warning. The 100,000 images without a class are not read.

    Args:
        data_root: Folder that holds ``stl10_binary``.
        split: ``train`` or ``test``.
        pipeline: Transforms, as in mmpretrain.
        **kwargs: As in :class:`mmpretrain.datasets.BaseDataset`. ``test_mode`` is True for ``test`` unless given.

    Raises:
        UserError: The split is unknown; a file is missing, does not hold whole images or has other classes; the two
            files differ in their number of images.

    References:
        1. Coates, Lee, Ng: An Analysis of Single-Layer Networks in Unsupervised Feature Learning, AISTATS 2011.
        2. pytorch/vision, ``torchvision/datasets/stl10.py`` (layout, archive and MD5 sums).
    """

    METAINFO = {'classes': ('airplane', 'bird', 'car', 'cat', 'deer', 'dog', 'horse', 'monkey', 'ship', 'truck')}
    channel_order = 'BGR'  # of the arrays that samples hold

    def __init__(self, data_root: str = '', split: str = 'train', pipeline: Sequence = (), **kwargs: Any) -> None:
        if split not in ('train', 'test'):
            raise UserError(f"STL10: split '{split}' is unknown; expected train or test")
        self.split = split
        super().__init__('', data_root=data_root, pipeline=pipeline, **{'test_mode': split == 'test', **kwargs})

    def load_data_list(self) -> list[dict]:
        """Return one dict per image, in the order of the files."""
        root = self.img_prefix.rstrip('/') or '.'
        remedy = f'complete or move away {_FOLDER}/, then run: kd-prepare-data stl10 --root {root}'
        files = {name: join_path(root, _FOLDER, name) for name in (f'{self.split}_X.bin', f'{self.split}_y.bin')}
        missing = [path for path in files.values() if not exists(path)]
        if missing:
            raise UserError(f'{", ".join(missing)}: missing; {remedy}')
        changed = [path for name, path in files.items() if not check_md5(path, _MD5[name])]
        if changed:
            MMLogger.get_current_instance().warning(
                f'{", ".join(changed)}: not the official bytes (MD5); accuracies cannot be compared with published ones'
            )
        (path, labels_path), (data, labels) = (
            files.values(),
            (np.frombuffer(get(path), np.uint8) for path in files.values()),
        )
        size = 3 * _SIDE * _SIDE
        if not len(data) or len(data) % size:
            raise UserError(f'{path}: expected whole images of {size} bytes each, got {len(data)} bytes; {remedy}')
        if len(labels) != len(data) // size or not 1 <= labels.min() <= labels.max() <= 10:
            span = f' from {labels.min()} to {labels.max()}' if len(labels) else ''
            raise UserError(
                f'{labels_path}: expected {len(data) // size} classes from 1 to 10, as many as '
                f'{path} has images, got {len(labels)}{span}; {remedy}'
            )
        images = np.ascontiguousarray(data.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 3, 2, 1)[..., ::-1])
        return [{'img': img, 'gt_label': int(label) - 1} for img, label in zip(images, labels, strict=True)]
