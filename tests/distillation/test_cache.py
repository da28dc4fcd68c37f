"""Features from the cache are those of the teacher."""

import argparse
import logging
import multiprocessing
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.queues import Queue
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement
from tiny import CLASSES, classification_config, equal, saved_teacher, train, weights
from torch import nn
from torch.nn import functional as F

from kd_plugins.datasets import BatchedImages
from kd_plugins.distillation import cache
from kd_plugins.distillation.cache import FeatureCache
from kd_plugins.distillation.origins import Origin
from kd_plugins.distillation.sources import build_network, build_teacher
from kd_plugins.distillation.teacher import Teacher
from kd_plugins.errors import UserError
from kd_plugins.registry import DATASETS

TAPS = ['head.fc', 'backbone.stage2']


@DATASETS.register_module()
class Shades:
    """Images whose brightness depends on their class."""

    metainfo = dict(classes=tuple(map(str, range(CLASSES))))

    def __len__(self) -> int:
        return 24

    def get_data_info(self, i: int) -> dict:
        rng = np.random.default_rng(i)
        return dict(img=(rng.integers(0, 120, (16, 16, 3)) + 40 * (i % CLASSES)).astype(np.uint8), gt_label=i % CLASSES)


@pytest.fixture
def teacher_config(tmp_path: Path) -> dict:
    return saved_teacher(tmp_path)


def teacher(teacher_config: dict, folder: Path, taps: list[str] = TAPS) -> Teacher:
    return Teacher(build_teacher(**teacher_config), taps, None, str(folder / 'cache'))


def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by a batch's size whenever a teacher runs."""
    calls, run = [], Teacher._forward
    monkeypatch.setattr(
        Teacher, '_forward', lambda self, inputs, samples: (calls.append(len(inputs)), run(self, inputs, samples))
    )
    return calls


@pytest.mark.parametrize('amp', [False, True])
def test_features_of_a_cached_batch_are_equal_without_a_forward_pass(
    teacher_config: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amp: bool
) -> None:
    images = torch.randn(5, 3, 16, 16)
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        expected = Teacher(build_teacher(**teacher_config), TAPS)(images, None)
        calls = forwards(monkeypatch)
        first = teacher(teacher_config, tmp_path)(images, None)
        again = teacher(teacher_config, tmp_path)(images.flip(0), None)  # another process would open the same file
    assert calls == [5]
    for tap in TAPS:
        assert torch.equal(first[tap][0], expected[tap][0])
        assert torch.equal(again[tap][0], expected[tap][0].flip(0))
        assert again[tap][0].dtype == (torch.bfloat16 if amp else torch.float32)


def test_everything_that_changes_the_features_changes_the_key(
    teacher_config: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randn(4, 3, 16, 16)
    teacher(teacher_config, tmp_path)(images, None)
    calls = forwards(monkeypatch)
    teacher(teacher_config, tmp_path)(images + 1e-6, None)
    teacher(teacher_config, tmp_path)(torch.cat([images[:3], images[:1] * 2]), None)  # one of four is new
    teacher(teacher_config, tmp_path)(images[..., :8], None)
    teacher(teacher_config, tmp_path)(images, [BaseDataElement(metainfo=dict(img_shape=(8, 8)))] * 4)
    teacher(teacher_config, tmp_path, ['neck'])(images, None)
    with torch.autocast('cpu', torch.bfloat16):
        teacher(teacher_config, tmp_path)(images, None)
    assert len(calls) == 6
    weights = torch.load(teacher_config['checkpoint'])
    weights['state_dict']['head.fc.bias'][0] += 1e-3
    torch.save(weights, teacher_config['checkpoint'])
    teacher(teacher_config, tmp_path)(images, None)
    assert len(calls) == 7
    teacher(teacher_config, tmp_path)(images, None)
    assert len(calls) == 7


class Scaled(nn.Module):
    def __init__(self, factor: float, shift: float) -> None:
        super().__init__()
        self.factor = factor
        self.register_buffer('shift', torch.tensor(shift), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * self.factor + self.shift


def test_options_of_the_network_change_the_key(tmp_path: Path) -> None:
    images = torch.ones(2, 3, 4, 4)
    for factor, shift in ((1.0, 0.0), (2.0, 0.0), (2.0, 1.0)):
        (features,) = Teacher(Scaled(factor, shift), [''], cache=str(tmp_path))(images, None)['']
        assert features.unique().tolist() == [factor + shift]
    backbone = dict(type='mmpretrain.ResNet', depth=18)
    stages = [build_network(dict(backbone, out_indices=(stage,))) for stage in (2, 3)]
    stages[1].load_state_dict(stages[0].state_dict())
    shapes = [Teacher(x, [''], cache=str(tmp_path))(torch.ones(1, 3, 32, 32), None)[''][0].shape for x in stages]
    assert shapes == [(1, 256, 2, 2), (1, 512, 1, 1)]


@pytest.mark.parametrize(
    ('first', 'second'),
    [
        (torch.relu, torch.sigmoid),
        (partial(F.leaky_relu, negative_slope=0.5), partial(F.leaky_relu, negative_slope=0.25)),
        (lambda x: x + 1, torch.abs),
    ],
)
def test_functions_of_the_network_change_the_key(tmp_path: Path, first: Callable, second: Callable) -> None:
    images = torch.tensor([-1.0, 2.0, -3.0, 4.0]).view(2, 2, 1, 1).expand(2, 2, 3, 3).clone()
    for function in (first, second):
        network = Scaled(1.0, 0.0)
        network.factor = torch.ones(1)
        network.register_forward_hook(lambda module, args, output: module.act(output))
        network.act = function
        (features,) = Teacher(network, [''], cache=str(tmp_path))(images, None)['']
        assert torch.equal(features, function(images))


@pytest.mark.parametrize('kind', [torch.tensor, np.array, np.float32])
def test_arrays_of_the_network_change_the_key(tmp_path: Path, kind: Callable) -> None:
    for factor in (2.0, 3.0):
        network = Scaled(kind(factor), 0.0)
        (features,) = Teacher(network, [''], cache=str(tmp_path))(torch.ones(2, 3, 4, 4), None)['']
        assert features.unique().tolist() == [factor]


@dataclass
class Options:
    factor: float
    more: Any = None


class Slotted:
    __slots__ = ('factor', 'more')

    def __init__(self, factor: float) -> None:
        self.factor, self.more = factor, object()


def nested(factor: float) -> Options:
    """Return an object that refers to itself, and to a lock, a logger and a network beside the factor."""
    logging.getLogger('x').began = time.time()  # a logger has files and times of its own
    options = Options(0.0, [threading.Lock(), logging.getLogger('x'), nn.Identity(), {'deep': {Path('a'), factor}}])
    options.more.append(options)
    return options


@pytest.mark.parametrize('kind', [Options, Slotted, nested, lambda x: argparse.Namespace(factor=x)])
def test_options_in_an_object_change_the_key(tmp_path: Path, kind: Callable) -> None:
    """As of a network that keeps its config (transformers)."""
    paths = []
    for factor in (2.0, 3.0, 2.0):
        network = Scaled(1.0, 0.0)
        network.options = kind(factor)
        paths.append(FeatureCache(tmp_path, network, []).path)
    assert paths[0] == paths[2] != paths[1]


def test_what_cannot_be_read_of_a_network_is_left_out_of_the_key(tmp_path: Path) -> None:
    paths = set()
    for _ in range(2):
        network = Scaled(1.0, 0.0)
        network.others = object()
        network.objects = np.array([object()])
        network.shapes = torch.empty(3, device='meta')
        paths.add(FeatureCache(tmp_path, network, []).path)
    assert len(paths) == 1


def test_the_teacher_runs_on_the_images_alone_that_have_no_entry(
    teacher_config: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randn(6, 3, 16, 16)
    samples = [BaseDataElement(metainfo=dict(img_shape=(16, 16 - i))) for i in range(6)]
    expected = teacher(teacher_config, tmp_path / 'other')(images, samples)
    teacher(teacher_config, tmp_path)(images[[4, 1]], [samples[4], samples[1]])
    calls = forwards(monkeypatch)
    for _ in range(2):
        features = teacher(teacher_config, tmp_path)(images, samples)
        for tap in TAPS:
            torch.testing.assert_close(features[tap][0], expected[tap][0], rtol=1e-5, atol=1e-6)
    assert calls == [4]


def test_a_run_that_repeats_its_augmentations_runs_the_teacher_for_the_first_ones_only(
    teacher_config: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origins: list[Origin | None] = []

    def run(name: str, **cache: str) -> tuple[dict, int]:
        config = classification_config(
            tmp_path,
            tmp_path / name,
            epochs=5,
            custom_hooks=[
                dict(
                    type='kd_plugins.DistillationHook',
                    teacher=teacher_config | cache,
                    terms=[dict(name='kd', loss=dict(type='kd_plugins.KDLoss'), student='head.fc', teacher='head.fc')],
                )
            ],
        )
        config.train_dataloader.collate_fn = dict(type='kd_plugins.whole_batch')
        config.train_dataloader.dataset = dict(
            type='kd_plugins.BatchedImages', dataset=dict(type='kd_plugins.Shades'), padding=2, flip_prob=0.5, replay=2
        )
        with monkeypatch.context() as patch:
            calls, keys = forwards(patch), FeatureCache.keys
            patch.setattr(FeatureCache, 'keys', lambda *args: (origins.append(args[3]), keys(*args))[1])
            model = train(config).model
            assert not model.data_preprocessor._forward_hooks
            return weights(model), sum(calls[3:])  # the first three are the dry run's

    plain, images = run('plain')
    assert images == 5 * 24
    cached, images = run('cached', cache=str(tmp_path / 'cache'))
    assert images == 2 * 24
    for name in plain:  # features may come from another batch
        torch.testing.assert_close(cached[name], plain[name], rtol=1e-4, atol=1e-6)
    again, images = run('again', cache=str(tmp_path / 'cache'))
    assert images == 0
    assert equal(again, cached)
    assert len(origins) == 2 * 5 * 3
    assert all(origin is not None and origin.images[0].dtype == torch.uint8 for origin in origins)
    assert BatchedImages(dict(type='kd_plugins.Shades'))[0]['inputs'].shape == (1, 3, 16, 16)


def test_another_forward_pass_of_the_same_class_is_another_teacher(tmp_path: Path) -> None:
    images, found = torch.rand(2, 3, 2, 2), []
    for expression in ('x', '2 * x', 'x'):
        (tmp_path / 'own.py').write_text(
            'import torch\n\n\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n'
            '        self.fc = torch.nn.Linear(12, 3)\n        torch.nn.init.ones_(self.fc.weight)\n'
            '        torch.nn.init.ones_(self.fc.bias)\n\n    def forward(self, x):\n'
            f'        return self.fc(({expression}).flatten(1))\n\n\ndef net():\n    return Net()\n'
        )
        network = build_teacher(build=f'{tmp_path}/own.py:net', data_preprocessor={})
        found.append(Teacher(network, ['fc'], None, str(tmp_path / 'cache'))(images, None)['fc'][0])
        torch.testing.assert_close(found[-1], network(images))
    assert torch.equal(found[0], found[2])
    assert len(list((tmp_path / 'cache').glob('*.sqlite'))) == 2


def test_a_file_that_another_process_is_making_is_waited_for() -> None:
    answers = [sqlite3.OperationalError('database is locked')] * 3

    class File:
        def execute(self, command: str) -> None:
            if answers:
                raise answers.pop()

    cache._share(File())
    assert not answers
    answers.append(sqlite3.OperationalError('disk I/O error'))
    with pytest.raises(sqlite3.OperationalError, match='disk'):
        cache._share(File())


def _open(barrier: Barrier, failed: Queue, folder: str) -> None:
    torch.manual_seed(0)
    network = nn.Linear(2, 2)
    for number in range(40):
        barrier.wait()
        try:
            FeatureCache(f'{folder}/{number}', network, [])
        except UserError as error:
            failed.put(str(error))
    failed.put(None)


def test_processes_may_make_a_file_at_the_same_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context('fork')
    barrier, failed = context.Barrier(4), context.Queue()
    workers = [context.Process(target=_open, args=(barrier, failed, str(tmp_path))) for _ in range(4)]
    for worker in workers:
        worker.start()
    assert [failed.get(timeout=120) for _ in workers] == [None] * 4
    for worker in workers:
        worker.join()


@pytest.mark.parametrize('sizes', [(4, 8), (8, 4)])
def test_images_of_equal_bytes_and_other_sizes_are_other_images(tmp_path: Path, sizes: tuple[int, int]) -> None:
    file = FeatureCache(tmp_path, nn.Linear(2, 2), [])
    (first,), (second,) = (file.keys(torch.ones(1, 3, *size), None)[1] for size in (sizes, sizes[::-1]))
    assert first != second


@pytest.mark.parametrize(
    'change',
    [
        'UPDATE answers SET value = (SELECT value FROM answers AS other WHERE other.key > answers.key LIMIT 1)',
        "UPDATE answers SET value = CAST(x'00ff' || substr(value, 3) AS BLOB)",
        'UPDATE answers SET value = substr(value, 9)',
        'UPDATE answers SET value = NULL',
        "UPDATE answers SET value = 'text'",
        "UPDATE layouts SET layout = replace(layout, '[8, 8, 8]', '[4, 16, 8]')",
        "UPDATE layouts SET layout = replace(layout, 'float32', 'int32')",
        'UPDATE layouts SET layout = \'[["head.fc"\'',
        'UPDATE layouts SET layout = \'[["head.fc", 3]]\'',
        "UPDATE layouts SET layout = replace(layout, ', 16]', ', \"16\"]')",
        'UPDATE layouts SET layout = NULL',
    ],
)
def test_damaged_entries_are_computed_again(
    teacher_config: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    images = torch.randn(4, 3, 16, 16)
    expected = teacher(teacher_config, tmp_path)(images, None)
    (path,) = (tmp_path / 'cache').glob('*.sqlite')
    with sqlite3.connect(path) as file:
        before = list(file.execute('SELECT * FROM answers')) + list(file.execute('SELECT * FROM layouts'))
        file.execute(change)
        assert before != list(file.execute('SELECT * FROM answers')) + list(file.execute('SELECT * FROM layouts'))
    file.close()
    calls = forwards(monkeypatch)
    for _ in range(2):
        features = teacher(teacher_config, tmp_path)(images, None)
        assert all(torch.equal(features[tap][0], expected[tap][0]) for tap in TAPS)
    assert calls == [4]  # the first call writes the entries again


def test_files_of_older_versions_without_checksums_are_read(
    teacher_config: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randn(4, 3, 16, 16)
    expected = teacher(teacher_config, tmp_path)(images, None)
    (path,) = (tmp_path / 'cache').glob('*.sqlite')
    with sqlite3.connect(path) as file:
        file.execute('UPDATE answers SET value = substr(value, 1, length(value) - 4)')
    file.close()
    calls = forwards(monkeypatch)
    features = teacher(teacher_config, tmp_path)(images, None)
    assert all(torch.equal(features[tap][0], expected[tap][0]) for tap in TAPS)
    assert calls == []


class Maps(nn.Module):
    """Three levels: maps, channels-last, a vector, and one number."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps = torch.cat([images, images * 2], 1).contiguous(memory_format=torch.channels_last)
        return maps, images.mean((2, 3)), images.mean((1, 2, 3))


def test_the_checksum_of_a_large_entry_is_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    own = cache._checksum
    monkeypatch.setattr(
        cache, '_checksum', lambda value, context: (compared.append(len(value)), own(value, context))[1]
    )
    large, small = torch.randn(2, 3, 80, 80), torch.randn(2, 3, 8, 8)
    for images in (large, small):
        Teacher(Maps(), [''], cache=str(tmp_path))(images, None)
    compared.clear()
    for images, times in ((large, 1), (small, 2)):
        cached = Teacher(Maps(), [''], cache=str(tmp_path))
        for _ in range(2):
            cached(images, None)
        assert compared == [(6 * images[0, 0].numel() + 3 + 1) * 4] * 2 * times
        compared.clear()


def test_features_keep_their_memory_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(4, 3, 8, 8)
    features = Teacher(Maps(), [''], cache=str(tmp_path))(images, None)['']
    calls = forwards(monkeypatch)
    again = Teacher(Maps(), [''], cache=str(tmp_path))(images, None)['']
    assert calls == []
    assert [(x.shape, x.stride()) for x in again] == [(x.shape, x.stride()) for x in features]
    assert all(map(torch.equal, again, features))
    assert again[0].stride(1) == 1


def test_a_file_has_one_memory_layout_that_of_its_first_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randn(4, 3, 8, 8)
    with monkeypatch.context() as patch:  # a run that is not channels-last, or one of an older version
        patch.setattr(Maps, 'forward', lambda self, x: (torch.cat([x, x * 2], 1), x.mean((2, 3)), x.mean((1, 2, 3))))
        Teacher(Maps(), [''], cache=str(tmp_path))(images, None)
    Teacher(Maps(), [''], cache=str(tmp_path))(images + 1, None)
    calls = forwards(monkeypatch)
    for shift in (0, 1):
        maps, vectors, _ = Teacher(Maps(), [''], cache=str(tmp_path))(images + shift, None)['']
        assert maps.is_contiguous()
        assert torch.equal(maps, torch.cat([images + shift, (images + shift) * 2], 1))
        assert torch.equal(vectors, (images + shift).mean((2, 3)))
    assert calls == []


def test_several_threads_find_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(5, 3, 512, 512)
    images[3] = images[1]
    expected = Teacher(Maps(), [''], cache=str(tmp_path))(images, None)['']
    calls, before, used = forwards(monkeypatch), torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        cached = Teacher(Maps(), [''], cache=str(tmp_path))
        own = cached._cache._pool.map
        cached._cache._pool.map = lambda function, parts: (used.append(len(parts)), own(function, parts))[1]
        found = cached(images, None)['']
    finally:
        torch.set_num_threads(before)
    assert calls == []
    assert used == [3, 2]  # three parts of five images, two of the four that differ
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_a_cache_that_is_never_read_is_noted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(cache, 'print_log', lambda line, *args: lines.append(line) if 'free' not in line else None)

    def notes(change: float) -> list[str]:
        lines.clear()
        cached = Teacher(Scaled(2.0, change), [''], cache=str(tmp_path))
        cached.expect(4)
        for epoch in range(3):
            for batch in torch.arange(4.0).view(2, 2, 1, 1, 1).expand(2, 2, 3, 4, 4):
                cached(batch + epoch * change, None)
        return list(lines)

    (note,) = notes(0.1)
    assert 'features of 6 images were stored' in note
    assert 'kd_plugins.RepeatedViews' in note
    assert not notes(0.0)


@pytest.mark.parametrize('free', [1e9, 10_000.0])
def test_the_room_that_features_take_is_told_with_the_first_ones(tmp_path: Path, monkeypatch, free: float) -> None:
    lines: list[tuple[str, int]] = []
    monkeypatch.setattr(cache, 'print_log', lambda line, logger, level: lines.append((line, level)))
    monkeypatch.setattr(cache.shutil, 'disk_usage', lambda path: argparse.Namespace(free=free))
    cached = Teacher(Maps(), [''], cache=str(tmp_path))
    cached(torch.zeros(2, 3, 4, 4), None)  # as in a dry run, which expects nothing yet
    cached.expect(60)
    for i in range(1, 4):
        cached(torch.full((2, 3, 4, 4), float(i)), None)
    ((line, level),) = lines
    size = cached._cache._local.file.execute('SELECT length(value) FROM answers').fetchone()[0] - 4
    assert f'{size / 1e3:.3g} kB an image, {60 * size / 1e9:.3g} GB for 60 inputs; {free / 1e9:.3g} GB are free' in line
    assert ('make room, tap smaller maps' in line) == (level == logging.WARNING) == (60 * size > free)
    assert (level == logging.INFO) == (free == 1e9)


def test_errors_are_one_line(teacher_config: dict, tmp_path: Path) -> None:
    cached = teacher(teacher_config, tmp_path)
    cached(torch.randn(2, 3, 16, 16), None)
    cached._cache._local.file.close()
    del cached._cache._local.file
    for file in cached._cache.path.parent.iterdir():
        file.write_bytes(b'no database' * 100)
    with pytest.raises(UserError, match="the teacher's cache cannot be used") as error:
        cached(torch.randn(2, 3, 16, 16), None)
    assert '\n' not in str(error.value)
    with pytest.raises(UserError, match="tap 'x' outputs \\(3, 4\\) for 2 images"):
        cached._cache.put('kind', [b'a', b'b'], {'x': [torch.ones(3, 4)]})
