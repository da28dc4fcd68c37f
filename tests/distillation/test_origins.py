"""Images stand for the batch that a preprocessor makes of them, where that is sure."""

import copy
import hashlib
from typing import Any

import pytest
import torch
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from mmpretrain.models import ClsDataPreprocessor
from tiny import classifier, saved_teacher
from torch import Tensor, nn

from kd_plugins.distillation.cache import FeatureCache
from kd_plugins.distillation.origins import Origins
from kd_plugins.distillation.teacher import Teacher

OPTIONS = dict(mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0])


def images() -> Tensor:
    return torch.arange(2 * 3 * 8 * 8).remainder(251).to(torch.uint8).view(2, 3, 8, 8)


@pytest.mark.parametrize('stacked', [True, False])
@pytest.mark.parametrize('kind', [ImgDataPreprocessor, ClsDataPreprocessor])
def test_the_images_of_a_batch_are_known(kind: type, stacked: bool) -> None:
    preprocessor = kind(**OPTIONS, pad_size_divisor=16)
    origins = Origins(preprocessor)
    origins.watch()
    raw = images() if stacked else list(images())
    batch = preprocessor(dict(inputs=raw))['inputs']
    assert batch.shape == (2, 3, 16, 16)
    origin = origins.of(batch)
    assert all(map(torch.equal, origin.images, raw))
    assert origins.of(batch.clone()) is None
    again = preprocessor(dict(inputs=raw))['inputs']
    assert origins.of(batch) is None
    assert origins.of(again) is not None
    copy.deepcopy(preprocessor)(dict(inputs=raw))  # that of an average of weights
    origins.close()
    assert not preprocessor._forward_hooks
    batch = preprocessor(dict(inputs=raw))['inputs']
    assert origins.of(batch) is None


def test_the_images_of_a_segmentors_batch_are_known() -> None:
    preprocessor = pytest.importorskip('mmseg.models').SegDataPreProcessor(**OPTIONS, test_cfg=dict(size=(16, 16)))
    origins = Origins(preprocessor)
    origins.watch()
    raw, samples = [*images()], [BaseDataElement(), BaseDataElement()]
    batch = preprocessor(dict(inputs=raw, data_samples=samples))['inputs']
    assert batch.shape == (2, 3, 16, 16)
    assert all(map(torch.equal, origins.of(batch).images, raw))


class Own(ClsDataPreprocessor):
    """May do anything."""


def augmented() -> nn.Module:
    return ClsDataPreprocessor(num_classes=2, batch_augments=dict(augments=dict(type='Mixup', alpha=1.0)), **OPTIONS)


@pytest.mark.parametrize(
    'change',
    ['batch', 'images', 'images gone', 'of a subclass', 'augmented', 'own forward', 'later hook', 'earlier hook'],
)
def test_nothing_is_known_of(change: str) -> None:
    kinds: dict[str, Any] = {'of a subclass': lambda: Own(**OPTIONS), 'augmented': augmented}
    preprocessor = kinds.get(change, lambda: ClsDataPreprocessor(**OPTIONS))()
    if change == 'own forward':
        plain = preprocessor.forward
        preprocessor.forward = lambda data, training=False: dict(inputs=plain(data, training)['inputs'].flip(-1))
    origins = Origins(preprocessor)

    def other_hook() -> None:
        preprocessor.register_forward_hook(lambda module, args, output: dict(output, inputs=output['inputs'] * 1))

    if change == 'earlier hook':
        other_hook()
    origins.watch()
    if change == 'later hook':
        other_hook()
    raw = images()
    batch = preprocessor(dict(inputs=raw))['inputs']
    if change == 'batch':
        batch[0, 0, 0, 0] = 1.0
    elif change == 'images':
        raw[0, 0, 0, 0] = 1
    elif change == 'images gone':
        del raw
    assert origins.of(batch) is None


def test_batches_of_inference_mode_are_hashed_themselves() -> None:
    preprocessor = ClsDataPreprocessor(**OPTIONS)
    origins = Origins(preprocessor)
    origins.watch()
    with torch.inference_mode():
        assert origins.of(preprocessor(dict(inputs=images()))['inputs']) is None


def test_everything_that_changes_the_batch_changes_the_key(tmp_path) -> None:
    cache, found = FeatureCache(tmp_path, nn.Linear(1, 1), []), []

    def key(raw: Any = None, shape: tuple = (8, 8), **options: Any) -> bytes:
        preprocessor = ClsDataPreprocessor(**OPTIONS | options)
        origins = Origins(preprocessor)
        origins.watch()
        raw = images()[:1] if raw is None else raw
        batch = preprocessor(dict(inputs=raw))['inputs']
        samples = [BaseDataElement(metainfo=dict(img_shape=shape))]
        found.append(cache.keys(batch, samples, origins.of(batch))[1][0])
        return found[-1]

    assert key() == key() == key(list(images()[:1]))
    del found[1:]
    other = images()[:1]
    other[0, 2, 7, 7] += 1
    key(other)
    key(images()[:1].float())
    key(images()[:1].view(1, 3, 4, 16))
    key(shape=(8, 7))
    key(mean=[120.0, 110.0, 101.0])
    key(std=[60.0, 50.0, 41.0])
    key(to_rgb=True)
    key(pad_size_divisor=16)
    key(pad_size_divisor=16, pad_value=1)
    with torch.autocast('cpu', torch.bfloat16):
        key()
    assert len(set(found)) == len(found) == 11
    pixels = ClsDataPreprocessor(**OPTIONS)(dict(inputs=images()[:1]))['inputs']
    assert cache.keys(pixels, [BaseDataElement(metainfo=dict(img_shape=(8, 8)))])[1][0] not in found


def test_the_keys_are_those_of_files_of_before(tmp_path) -> None:
    cache, preprocessor, raw = FeatureCache(tmp_path, nn.Linear(1, 1), []), ClsDataPreprocessor(**OPTIONS), images()
    samples = [BaseDataElement(metainfo=dict(img_shape=(8, 8 - i % 2))) for i in range(len(raw))]
    origins = Origins(preprocessor)
    origins.watch()
    for stacked in (True, False):
        given = raw if stacked else list(raw)
        batch = preprocessor(dict(inputs=given))['inputs']
        way = origins.of(batch).way
        contexts = [f'(3, 8, 8) torch.float32 {way} torch.uint8 (3, 8, 8) {sample.img_shape}' for sample in samples]
        expected = [
            hashlib.blake2b(image.numpy().tobytes(), key=hashlib.blake2b(x.encode()).digest(), digest_size=16).digest()
            for image, x in zip(raw, contexts, strict=True)
        ]
        assert cache.keys(batch, samples, origins.of(batch)) == ('(3, 8, 8) torch.float32', expected)
    for layout in (torch.contiguous_format, torch.channels_last):
        expected = [
            hashlib.blake2b(x.numpy().tobytes(), key=f'torch.float32 {y.img_shape}'.encode(), digest_size=16).digest()
            for x, y in zip(batch, samples, strict=True)
        ]
        assert cache.keys(batch.contiguous(memory_format=layout), samples)[1] == expected


def test_a_distiller_and_its_copies_know_their_images(tmp_path) -> None:
    terms = [dict(name='kd', loss=dict(type='kd_plugins.KDLoss'), student='head.fc', teacher='head.fc')]
    config = dict(student=classifier(), teacher=saved_teacher(tmp_path) | dict(cache=str(tmp_path / 'cache')))
    model = MODELS.build(dict(type='kd_plugins.Distiller', **config, terms=terms, input_shape=(3, 8, 8)))
    copied = copy.deepcopy(model)
    origins = model.distillation.teacher.origins
    for network in (copied, model):
        raw = images()
        batch = network.data_preprocessor(dict(inputs=raw), True)['inputs']
        assert torch.equal(origins.of(batch).images, raw)


class Doubled(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images * 2


def test_a_file_of_before_is_read_by_its_own_keys(tmp_path, monkeypatch) -> None:
    cache = FeatureCache(tmp_path, Doubled(), [])
    with cache._transaction() as file:
        file.execute('PRAGMA user_version=0')
    preprocessor = MODELS.build(dict(type='mmpretrain.ClsDataPreprocessor', **OPTIONS))
    monkeypatch.setattr(
        'kd_plugins.distillation.teacher.FeatureCache', lambda *args: FeatureCache(*args[:1], Doubled(), [])
    )
    raw, calls = images(), []
    batch = preprocessor(dict(inputs=raw))['inputs']
    first = Teacher(Doubled(), [''], preprocessor, cache=str(tmp_path))(batch, None)['']
    run = Teacher._forward
    monkeypatch.setattr(Teacher, '_forward', lambda *args: (calls.append(args), run(*args)))
    again = Teacher(Doubled(), [''], preprocessor, cache=str(tmp_path))
    again.origins.watch()
    batch = preprocessor(dict(inputs=raw))['inputs']
    assert again.origins.of(batch) is not None
    assert torch.equal(again(batch, None)[''][0], first[0])
    assert calls == []
    with cache._transaction() as file:
        file.execute('PRAGMA user_version=1')
    again = Teacher(Doubled(), [''], preprocessor, cache=str(tmp_path))
    again.origins.watch()
    for _ in range(2):
        batch = preprocessor(dict(inputs=raw))['inputs']
        assert torch.equal(again(batch, None)[''][0], first[0])
    assert len(calls) == 1
