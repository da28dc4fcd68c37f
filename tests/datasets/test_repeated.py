"""A few augmentations of each image, again and again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import coco_folder
from torch import nn
from torch.utils.data import DataLoader

from kd_plugins.datasets import RepeatedViews
from kd_plugins.distillation.cache import FeatureCache
from kd_plugins.errors import UserError

AUGMENTED = [
    dict(type='kd_plugins.LoadImage'),
    dict(type='mmpretrain.RandomResizedCrop', scale=8),
    dict(type='mmpretrain.RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='mmpretrain.PackInputs'),
]


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    for name in ('0.png', '1.png', '2.png'):
        Image.fromarray(np.random.default_rng(int(name[0])).integers(256, size=(16, 16, 3), dtype=np.uint8)).save(
            tmp_path / name
        )

    return dict(type='kd_plugins.UnlabelledImages', data_root=str(tmp_path), pipeline=AUGMENTED)


def _epoch(views: RepeatedViews, epoch: int) -> list[bytes]:
    views.set_epoch(epoch, seed=epoch)
    return [sample['inputs'].numpy().tobytes() for sample in views.__getitems__(range(len(views)))]


def test_epochs_repeat_and_every_run_is_the_same(data: dict[str, Any]) -> None:
    np.random.seed(0)
    first = [_epoch(RepeatedViews(data, 3), epoch) for epoch in range(3)]
    assert len({view for epoch in first for view in epoch}) == 9
    np.random.seed(1)
    views = RepeatedViews(data, 3)
    assert [_epoch(views, epoch) for epoch in (3, 7, 2)] == first
    assert views[-1]['inputs'].numpy().tobytes() == first[2][-1]
    assert not {*_epoch(RepeatedViews(data, 3, seed=1), 0)} & {*first[0]}


def test_other_draws_are_as_without_it(data: dict[str, Any]) -> None:
    views, states = RepeatedViews(data, 5), []
    for take in (lambda: _epoch(views, 1), lambda: None):
        np.random.seed(7)
        torch.manual_seed(7)
        take()
        states.append((np.random.randint(2**31), torch.rand(1).item()))
    assert states[0] == states[1]


def test_a_cache_answers_after_as_many_epochs_as_there_are_views(data: dict[str, Any], tmp_path: Path) -> None:
    views, cache, found = RepeatedViews(data, 2), FeatureCache(tmp_path / 'cache', nn.Identity(), []), []
    for epoch in range(4):
        views.set_epoch(epoch, 0)
        batch = torch.stack([views[i]['inputs'] for i in range(3)]).float()
        kind, keys = cache.keys(batch, None)
        found.append(not cache.missing(keys))
        cache.put(kind, keys, {'': [batch]})
    assert found == [False, False, True, True]


def test_a_run_without_epochs_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r'no epoch was set.*kd_plugins\.ReseedHook'):
        next(iter(DataLoader(RepeatedViews(data, 2), batch_size=2)))


@pytest.mark.parametrize('options', [dict(views=0), dict(views=2.0), dict(views=1, seed=-1)])
def test_numbers_out_of_range_are_refused(data: dict[str, Any], options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r'RepeatedViews: views=.*; expected whole numbers'):
        RepeatedViews(data, **options)


def test_a_loop_over_it_ends(data: dict[str, Any]) -> None:
    views = RepeatedViews(data, 2)
    assert len(list(views)) == len(views) == 3
    assert views.get_data_info(1)['img_path'].endswith('1.png')


@pytest.mark.parametrize('kind', ['Mosaic', 'CachedMosaic'])
def test_a_mosaic_repeats_where_it_keeps_no_images(data: dict[str, Any], kind: str) -> None:
    """Its steps are switched off late in training, as by YOLOX's hook."""
    pytest.importorskip('mmdet.datasets')
    mosaic = dict(type=f'mmdet.{kind}', img_scale=(32, 32))
    boxes = dict(type='mmdet.LoadAnnotations', with_bbox=True)
    folder = coco_folder(Path(data['data_root']) / 'coco')
    inner = dict(
        type='mmdet.CocoDataset',
        ann_file=str(folder / 'annotations.json'),
        data_prefix=dict(img=str(folder / 'images')),
        metainfo=dict(classes=('person',)),
        pipeline=[dict(type='kd_plugins.LoadImage'), boxes],
    )
    mixed = dict(type='mmdet.MultiImageMixDataset', dataset=inner, pipeline=[mosaic, dict(type='mmdet.PackDetInputs')])
    if kind == 'CachedMosaic':
        with pytest.raises(UserError, match='CachedMosaic mixes in images that came before, so that no view repeats'):
            RepeatedViews(mixed, 2)
        return
    views = RepeatedViews(mixed, 2)
    assert _epoch(views, 0) == _epoch(views, 2) != _epoch(views, 1)
    views.update_skip_type_keys(['mmdet.Mosaic'])
    assert views[0]['inputs'].shape == (3, 64, 64)  # of one image
    assert _epoch(views, 0) == _epoch(views, 1)
