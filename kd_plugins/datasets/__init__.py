from typing import Any

from kd_plugins.datasets.batched import BatchedImages, whole_batch
from kd_plugins.datasets.cifar import CIFAR10, CIFAR100
from kd_plugins.datasets.corruption import corrupted
from kd_plugins.datasets.loading import LoadImage, LoadSegMap
from kd_plugins.datasets.market1501 import Market1501
from kd_plugins.datasets.repeated import RepeatedViews
from kd_plugins.datasets.resized import ResizedImages
from kd_plugins.datasets.samplers import PKSampler
from kd_plugins.datasets.stl10 import STL10
from kd_plugins.datasets.unlabelled import UnlabelledImages
from kd_plugins.registry import DATASETS

__all__ = [
    'CIFAR10',
    'CIFAR100',
    'STL10',
    'BatchedImages',
    'LoadImage',
    'LoadSegMap',
    'Market1501',
    'PKSampler',
    'RepeatedViews',
    'ResizedImages',
    'UnlabelledImages',
    'corrupted',
    'whole_batch',
]


@DATASETS.register_module(name='VOCDataset')
def _voc_dataset(**kwargs: Any) -> Any:
    """Build a :class:`kd_plugins.datasets.voc.VOCDataset`; mmdet is imported only where it is used."""
    from kd_plugins.datasets.voc import VOCDataset

    return VOCDataset(**kwargs)
