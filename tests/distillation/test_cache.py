"""A teacher's answers from disk are its answers."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement
from tiny import CLASSES, classification_config, equal, teacher_record, train, weights

from kd_plugins.datasets import BatchedImages
from kd_plugins.distillation.sources import build_teacher
from kd_plugins.distillation.teacher import Teacher
from kd_plugins.errors import UserError
from kd_plugins.registry import DATASETS

TAPS = ['head.fc', 'backbone.stage2']


@DATASETS.register_module()
class Shades:
    """Pictures whose brightness tells their class."""

    metainfo = dict(classes=tuple(map(str, range(CLASSES))))

    def __len__(self) -> int:
        return 24

    def get_data_info(self, i: int) -> dict:
        rng = np.random.default_rng(i)
        return dict(img=(rng.integers(0, 120, (16, 16, 3)) + 40 * (i % CLASSES)).astype(np.uint8), gt_label=i % CLASSES)


@pytest.fixture
def record(tmp_path: Path) -> dict:
    return teacher_record(tmp_path)


def teacher(record: dict, folder: Path, taps: list[str] = TAPS) -> Teacher:
    return Teacher(build_teacher(**record), taps, None, str(folder / 'cache'))


def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by a batch's size whenever a teacher runs."""
    calls, run = [], Teacher._forward
    monkeypatch.setattr(
        Teacher, '_forward', lambda self, inputs, samples: (calls.append(len(inputs)), run(self, inputs, samples))
    )
    return calls


@pytest.mark.parametrize('amp', [False, True])
def test_a_known_batch_is_answered_alike_without_the_network(
    record: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amp: bool
) -> None:
    images = torch.randn(5, 3, 16, 16)
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        expected = Teacher(build_teacher(**record), TAPS)(images, None)
        calls = forwards(monkeypatch)
        first = teacher(record, tmp_path)(images, None)
        again = teacher(record, tmp_path)(images.flip(0), None)  # another process would open the same file
    assert calls == [5]
    for tap in TAPS:
        assert torch.equal(first[tap][0], expected[tap][0])
        assert torch.equal(again[tap][0], expected[tap][0].flip(0))
        assert again[tap][0].dtype == (torch.bfloat16 if amp else torch.float32)


def test_what_could_change_an_answer_is_another_question(
    record: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randn(4, 3, 16, 16)
    teacher(record, tmp_path)(images, None)
    calls = forwards(monkeypatch)
    teacher(record, tmp_path)(images + 1e-6, None)
    teacher(record, tmp_path)(torch.cat([images[:3], images[:1] * 2]), None)  # one of four is new
    teacher(record, tmp_path)(images[..., :8], None)
    teacher(record, tmp_path)(images, [BaseDataElement(metainfo=dict(img_shape=(8, 8)))] * 4)
    teacher(record, tmp_path, ['neck'])(images, None)
    with torch.autocast('cpu', torch.bfloat16):
        teacher(record, tmp_path)(images, None)
    assert len(calls) == 6
    weights = torch.load(record['checkpoint'])
    weights['state_dict']['head.fc.bias'][0] += 1e-3
    torch.save(weights, record['checkpoint'])
    teacher(record, tmp_path)(images, None)
    assert len(calls) == 7
    teacher(record, tmp_path)(images, None)
    assert len(calls) == 7


def test_a_run_that_repeats_its_augmentations_asks_the_teacher_for_the_first_ones_only(
    record: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, **cache: str) -> tuple[dict, int]:
        config = classification_config(
            tmp_path,
            tmp_path / name,
            epochs=5,
            custom_hooks=[
                dict(
                    type='kd_plugins.DistillationHook',
                    teacher=record | cache,
                    terms=[dict(name='kd', loss=dict(type='kd_plugins.KDLoss'), student='head.fc', teacher='head.fc')],
                )
            ],
        )
        config.train_dataloader.collate_fn = dict(type='kd_plugins.whole_batch')
        config.train_dataloader.dataset = dict(
            type='kd_plugins.BatchedImages', dataset=dict(type='kd_plugins.Shades'), padding=2, flip_prob=0.5, replay=2
        )
        with monkeypatch.context() as patch:
            calls = forwards(patch)
            return weights(train(config).model), sum(calls[1:])  # the first call is the dry run's

    plain, answered = run('plain')
    assert answered == 5 * 24
    cached, answered = run('cached', cache=str(tmp_path / 'cache'))
    assert answered == 2 * 24
    for name in plain:  # an answer may come from another batch
        torch.testing.assert_close(cached[name], plain[name], rtol=1e-4, atol=1e-6)
    again, answered = run('again', cache=str(tmp_path / 'cache'))
    assert answered == 0
    assert equal(again, cached)
    assert BatchedImages(dict(type='kd_plugins.Shades'))[0]['inputs'].shape == (1, 3, 16, 16)


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
def test_what_has_changed_in_a_whole_file_is_answered_anew(
    record: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    images = torch.randn(4, 3, 16, 16)
    expected = teacher(record, tmp_path)(images, None)
    (path,) = (tmp_path / 'cache').glob('*.sqlite')
    with sqlite3.connect(path) as file:
        before = list(file.execute('SELECT * FROM answers')) + list(file.execute('SELECT * FROM layouts'))
        file.execute(change)
        assert before != list(file.execute('SELECT * FROM answers')) + list(file.execute('SELECT * FROM layouts'))
    file.close()
    calls = forwards(monkeypatch)
    for _ in range(2):
        found = teacher(record, tmp_path)(images, None)
        assert all(torch.equal(found[tap][0], expected[tap][0]) for tap in TAPS)
    assert calls == [4]  # mended by the first


def test_files_of_older_versions_without_checksums_answer(
    record: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randn(4, 3, 16, 16)
    expected = teacher(record, tmp_path)(images, None)
    (path,) = (tmp_path / 'cache').glob('*.sqlite')
    with sqlite3.connect(path) as file:
        file.execute('UPDATE answers SET value = substr(value, 1, length(value) - 4)')
    file.close()
    calls = forwards(monkeypatch)
    found = teacher(record, tmp_path)(images, None)
    assert all(torch.equal(found[tap][0], expected[tap][0]) for tap in TAPS)
    assert calls == []


def test_mistakes_are_told(record: dict, tmp_path: Path) -> None:
    answering = teacher(record, tmp_path)
    answering(torch.randn(2, 3, 16, 16), None)
    answering._cache._file.close()
    answering._cache._file = None
    for file in answering._cache.path.parent.iterdir():
        file.write_bytes(b'no database' * 100)
    with pytest.raises(UserError, match="the teacher's cache cannot be used"):
        answering(torch.randn(2, 3, 16, 16), None)
    with pytest.raises(UserError, match="tap 'x' puts out \\(3, 4\\) for 2 images"):
        answering._cache.put(torch.randn(2, 3, 4, 4), None, {'x': [torch.ones(3, 4)]})
