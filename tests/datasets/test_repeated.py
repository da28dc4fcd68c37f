"""A few augmentations of each image, again and again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

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


def _drawn(views: RepeatedViews, idx: int, times: int) -> set[bytes]:
    return {views[idx]['inputs'].numpy().tobytes() for _ in range(times)}


def test_each_image_has_as_many_views_as_stated_and_every_run_the_same(data: dict[str, Any]) -> None:
    np.random.seed(0)
    first = [_drawn(RepeatedViews(data, 3), i, 40) for i in range(3)]
    assert [len(x) for x in first] == [3, 3, 3]
    np.random.seed(1)
    assert [_drawn(RepeatedViews(data, 3), i, 40) for i in (0, -2, -1)] == first
    assert not _drawn(RepeatedViews(data, 3, seed=1), 0, 40) & first[0]


def test_an_image_takes_one_draw_whatever_its_pipeline(data: dict[str, Any]) -> None:
    views = RepeatedViews(data, 5)
    states = []
    for take in (lambda: [views[i] for i in range(3)], lambda: np.random.randint(5, size=3)):
        np.random.seed(7)
        torch.manual_seed(7)
        take()
        states.append((np.random.randint(2**31), torch.rand(1).item()))
    assert states[0] == states[1]


def test_a_cache_answers_once_every_view_was_drawn(data: dict[str, Any], tmp_path: Path) -> None:
    views, cache = RepeatedViews(data, 2), FeatureCache(tmp_path / 'cache', nn.Identity(), [])
    np.random.seed(0)
    found = []
    for _ in range(20):
        batch = torch.stack([views[i]['inputs'] for i in range(3)]).float()
        found.append(cache.get(batch, None) is not None)
        cache.put(batch, None, {'': [batch]})
    assert not found[0]
    assert all(found[10:])


@pytest.mark.parametrize('options', [dict(views=0), dict(views=2.0), dict(views=1, seed=-1)])
def test_numbers_out_of_range_are_refused(data: dict[str, Any], options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r'RepeatedViews: views=.*; expected whole numbers'):
        RepeatedViews(data, **options)


def test_a_loop_over_it_ends(data: dict[str, Any]) -> None:
    views = RepeatedViews(data, 2)
    assert len(list(views)) == len(views) == 3
    assert views.get_data_info(1)['img_path'].endswith('1.png')
