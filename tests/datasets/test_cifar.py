import hashlib
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS

from kd_plugins.datasets.cifar import CIFAR10, CIFAR100
from kd_plugins.errors import UserError

LABELS = {CIFAR10: 'labels', CIFAR100: 'fine_labels'}


def write(root: Path, dataset: type[CIFAR10], protocol: int = 2, per_file: int = 3) -> dict[str, dict]:
    """Write a tiny folder in the official layout; return the dict in each file."""
    rng = np.random.default_rng(0)
    classes = len(dataset.METAINFO['classes'])
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    entries = {}
    for name, _ in dataset.train_list + dataset.test_list:
        entries[name] = {
            'data': rng.integers(0, 256, (per_file, 3072), np.uint8),
            LABELS[dataset]: rng.integers(0, classes, per_file).tolist(),
            'filenames': ['x.png'] * per_file,
        }
        (folder / name).write_bytes(pickle.dumps(entries[name], protocol=protocol))
    return entries


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert '\n' not in message
    return message


@pytest.mark.parametrize('protocol', [2, 4, 5])
@pytest.mark.parametrize('dataset', [CIFAR10, CIFAR100])
def test_pictures_and_labels_come_in_file_order(dataset: type[CIFAR10], protocol: int, tmp_path: Path) -> None:
    entries = write(tmp_path, dataset, protocol)
    for split, files in (('train', dataset.train_list), ('test', dataset.test_list)):
        data = dataset(data_root=str(tmp_path), split=split, download=False)
        rows = np.concatenate([entries[name]['data'] for name, _ in files])
        labels = [label for name, _ in files for label in entries[name][LABELS[dataset]]]
        assert len(data) == len(labels) == 3 * len(files)
        assert data.get_gt_labels().tolist() == labels
        for i in range(len(data)):
            img = data[i]['img']
            assert (img.shape, img.dtype) == ((32, 32, 3), np.uint8)
            # Byte k of a row: plane k // 1024, then row by row.
            k = 1024 * 2 + 32 * 5 + 7
            assert img[5, 7, 2] == rows[i, k]
            assert img[5, 7, 0] == rows[i, k - 2048]


def test_names_of_the_classes_are_the_data_sets_own(tmp_path: Path) -> None:
    write(tmp_path, CIFAR10)
    write(tmp_path, CIFAR100)
    ten, hundred = (x(data_root=str(tmp_path), split='test', download=False) for x in (CIFAR10, CIFAR100))
    assert ten.metainfo['classes'][:2] == ('airplane', 'automobile')
    assert len(hundred.metainfo['classes']) == 100


def test_it_is_found_by_name_and_runs_mmpretrains_pipeline(tmp_path: Path) -> None:
    write(tmp_path, CIFAR10)
    data = DATASETS.build(
        {
            'type': 'kd_plugins.CIFAR10',
            'data_root': str(tmp_path),
            'split': 'train',
            'download': False,
            'pipeline': [{'type': 'RandomCrop', 'crop_size': 32, 'padding': 4}, {'type': 'PackInputs'}],
        }
    )
    sample = data[0]
    assert sample['inputs'].shape == (3, 32, 32)
    assert sample['data_samples'].gt_label.item() == data.get_data_info(0)['gt_label']


def test_changed_bytes_are_told_once_a_split_and_official_ones_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, CIFAR10)
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        CIFAR10(data_root=str(tmp_path), split='train', download=False)
        warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert len(warnings) == 1
        assert '5 of 5 files' in warnings[0]
        assert str(tmp_path) in warnings[0]
        caplog.clear()
        official = [
            [name, hashlib.md5((tmp_path / CIFAR10.base_folder / name).read_bytes()).hexdigest()]
            for name, _ in CIFAR10.train_list
        ]
        monkeypatch.setattr(CIFAR10, 'train_list', official)
        CIFAR10(data_root=str(tmp_path), split='train', download=False)
        assert not caplog.records
    finally:
        logger.removeHandler(caplog.handler)


@pytest.mark.parametrize(('dataset', 'command'), [(CIFAR10, 'cifar10'), (CIFAR100, 'cifar100')])
def test_a_missing_root_says_what_belongs_there(dataset: type[CIFAR10], command: str, tmp_path: Path) -> None:
    root = tmp_path / 'nowhere'
    with pytest.raises(UserError) as error:
        dataset(data_root=str(root), split='train', download=False)
    message = one_line(error)
    assert message.startswith(f'{root}: ')
    assert dataset.base_folder in message
    assert dataset.train_list[0][0] in message
    assert message.endswith(f'kd-prepare-data {command} --root {root}')


def test_a_missing_file_is_named_and_nothing_is_fetched_over_the_others(tmp_path: Path) -> None:
    write(tmp_path, CIFAR10)
    (tmp_path / CIFAR10.base_folder / 'data_batch_3').unlink()
    with pytest.raises(UserError, match='data_batch_3: missing') as error:
        CIFAR10(data_root=str(tmp_path), split='train', download=True)
    assert 'data_batch_2' not in one_line(error)
    assert len(CIFAR10(data_root=str(tmp_path), split='test', download=False)) == 3


def test_an_archive_that_cannot_be_fetched_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR10, 'url', (tmp_path / 'absent.tar.gz').as_uri())
    with pytest.raises(UserError, match='could not be fetched') as error:
        CIFAR10(data_root=str(tmp_path / 'root'), split='train')
    assert str(tmp_path / 'root') in one_line(error)


def truncated(good: dict) -> bytes:
    return pickle.dumps(good, protocol=2)[:-500]


def changed(**values: object) -> object:
    return lambda good: pickle.dumps({**good, **values}, protocol=2)


@pytest.mark.parametrize(
    ('content', 'got'),
    [
        (truncated, 'not a whole pickle'),
        (lambda good: b'', 'not a whole pickle'),
        (lambda good: pickle.dumps([1, 2]), 'got list'),
        (lambda good: pickle.dumps({'data': good['data']}), 'got data'),
        (changed(labels=[0, 1]), '2 labels'),
        (changed(labels=[0, 1, 10]), '0 to 10'),
        (changed(labels=[0, 1, -1]), '-1 to 1'),
        (changed(data=np.zeros((3, 3072))), 'float64'),
        (changed(data=np.zeros((3, 1024), np.uint8)), '(3, 1024)'),
        (changed(data=[1, 2, 3]), 'got data, labels'),
    ],
)
def test_wrong_content_names_the_file_and_what_it_held(content: object, got: str, tmp_path: Path) -> None:
    path = tmp_path / CIFAR10.base_folder / 'test_batch'
    good = write(tmp_path, CIFAR10)['test_batch']
    path.write_bytes(content(good))
    with pytest.raises(UserError) as error:
        CIFAR10(data_root=str(tmp_path), split='test', download=False)
    message = one_line(error)
    assert message.startswith(f'{path}: ')
    assert got in message


class Evil:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple:
        return Path.touch, (self.victim,)


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    write(tmp_path, CIFAR10)
    victim = tmp_path / 'victim'
    payload = pickle.dumps({'data': Evil(victim), 'labels': []})
    pickle.loads(payload)
    assert victim.exists()
    victim.unlink()
    (tmp_path / CIFAR10.base_folder / 'test_batch').write_bytes(payload)
    with pytest.raises(UserError, match='not a whole pickle of plain arrays'):
        CIFAR10(data_root=str(tmp_path), split='test', download=False)
    assert not victim.exists()
