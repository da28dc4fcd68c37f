"""Images for an export: of a config's test set, or drawn."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor

from kd_plugins.config import walk, without_workers
from kd_plugins.errors import UserError
from kd_plugins.export.network import channels_of
from kd_plugins.registry import DATASETS, type_name

COUNT = 7


class Images(NamedTuple):
    """Normalised images (7, C, H, W), in words where they are from, and the names of their classes."""

    images: Tensor
    source: str
    classes: Sequence[str] | None


def channel_order(config: Config) -> str:
    """Return in which order test images come, 'RGB' or 'BGR': as files are loaded, unless a data set states another."""
    for path, part in walk(config.get('test_dataloader')):
        if path.startswith('dataset') and 'pipeline' not in path and isinstance(part, Mapping):
            kind = _class_of(part)
            # mmpretrain's own states none, and its CIFAR100 is a subclass.
            cifar = any(base.__name__ == 'CIFAR10' for base in getattr(kind, '__mro__', ()))
            if getattr(kind, 'channel_order', 'RGB' if cifar else 'BGR') == 'RGB':
                return 'RGB'
    return 'BGR'


def check_pipeline(config: Config) -> None:
    """Check that no step of the test pipelines normalises images, which a file's metadata would not say.

    Raises:
        UserError: One does.
    """
    for path, step in walk(config.get('test_dataloader')):
        if 'pipeline' in path and isinstance(step, Mapping):
            name = type_name(step).rpartition('/')[2]
            if name == 'Normalize' or step.get('type') == 'torchvision/ToTensor':
                raise UserError(
                    f'test_dataloader.{path}: {name} changes the pixels that the file would be said to take: leave it '
                    'to the data_preprocessor, with mean and std of pixels of 0 to 255'
                )


def images_for(config: Config, network: Any, size: Sequence[int] | None) -> Images:
    """Return images as a network gets them in a test.

    They are the first of the config's test set. Where that is not here, they are drawn at random, and take its
    pipeline; or, where ``size`` is given, they are drawn in that size.

    Raises:
        UserError: The config has no test pipeline, or one that leaves the size of images as it is.
    """
    channels = channels_of(network)
    generator = torch.Generator().manual_seed(0)
    if size is not None:
        return Images(torch.randn(COUNT, channels, *size, generator=generator), 'drawn', None)
    classes = None
    pipeline = next((value for path, value in walk(config.get('test_dataloader')) if path.endswith('pipeline')), None)
    try:
        if config.get('test_dataloader') is None:
            raise UserError(f'{config.filename} has no test_dataloader')
        test = without_workers(copy.deepcopy(config.test_dataloader)) | dict(batch_size=COUNT)
        for _, part in walk(test):  # seven images are no reason to fetch a data set
            if isinstance(part, dict) and _downloads(part):
                part['download'] = False
        loader = Runner.build_dataloader(test, seed=0)
        batch, classes = next(iter(loader)), (getattr(loader.dataset, 'metainfo', None) or {}).get('classes')
        source = 'of the test set'
    except Exception as error:
        if pipeline is None:
            raise UserError(
                f'{config.filename} has no test pipeline, which says how large the images are, and its test set is not '
                'here: give --size HEIGHT WIDTH'
            ) from error
        if config.get('default_scope') == 'mmseg':  # whose pipelines keep an image's proportions
            raise UserError(
                f'{config.filename}: the test set is not here, which says how large the images are: give --size HEIGHT '
                'WIDTH'
            ) from error
        print_log(f'the test set is not here, images are drawn ({" ".join(str(error).split())[:200]})', 'current')
        batch, source = pseudo_collate(_drawn(pipeline, channels)), 'drawn'
    if type(network.data_preprocessor).__name__ == 'SegDataPreProcessor':  # which wants one size
        alike = [i for i, image in enumerate(batch['inputs']) if image.shape == batch['inputs'][0].shape]
        batch = {name: [values[i] for i in alike] for name, values in batch.items()}
    images: Any = network.data_preprocessor(batch, False)['inputs']
    if not isinstance(images, Tensor):  # a preprocessor that does nothing
        images = torch.stack([*images]).float()
    return Images(images[torch.arange(COUNT) % len(images)], source, classes)


def _class_of(part: Mapping[str, Any]) -> Any:
    """Return the class of a data set's config dict, or None where it is not known."""
    kind = part.get('type')
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry(None) as registry, suppress(ImportError):
            return registry.get(kind)
    return kind


def _downloads(part: Mapping[str, Any]) -> bool:
    """Return whether a config dict is of a data set that has an option to download it."""
    for base in getattr(_class_of(part), '__mro__', ()):
        parameters = signature(base.__init__).parameters
        if 'download' in parameters or not any(x.kind is x.VAR_KEYWORD for x in parameters.values()):
            return 'download' in parameters
    return False


def _drawn(pipeline: list[Any], channels: int) -> list[Any]:
    """Return drawn images after a test pipeline, grey ones as they are loaded: without an axis of channels."""
    steps = [copy.deepcopy(step) for step in pipeline if not type_name(step).startswith('LoadImage')]
    rng, side = np.random.default_rng(0), (333, 451)
    known = dict(img_shape=side, ori_shape=side, height=side[0], width=side[1], img_path='', gt_label=0, instances=[])
    found = []
    for number in range(COUNT):
        image = rng.integers(0, 256, side if channels == 1 else (*side, channels), dtype=np.uint8)
        found.append(Compose(steps)(known | dict(img=image, img_id=number, sample_idx=number)))
    if found[0]['inputs'].shape[-2:] == side:
        raise UserError(
            'the test set is not here, and its pipeline leaves the size of images as it is: give --size HEIGHT WIDTH'
        )
    return found
