import hashlib
import logging
from pathlib import Path

import numpy as np
import pytest
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS

from kd_plugins.datasets import stl10
from kd_plugins.datasets.stl10 import STL10
from kd_plugins.errors import UserError


def write(root: Path, split: str = 'train', labels: tuple[int, ...] = (10, 1, 4)) -> np.ndarray:
    """Write a split in the official layout; return its bytes, a row a picture."""
    folder = root / 'stl10_binary'
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.random.default_rng(len(split)).integers(0, 256, (len(labels), 3 * 96 * 96), np.uint8)
    (folder / f'{split}_X.bin').write_bytes(rows.tobytes())
    (folder / f'{split}_y.bin').write_bytes(bytes(labels))
    return rows


def refused(root: Path, split: str = 'train') -> str:
    with pytest.raises(UserError) as error:
        STL10(str(root), split)
    message = str(error.value)
    assert '\n' not in message
    return message


def test_pictures_are_stored_column_by_column_and_classes_count_from_1(tmp_path: Path):
    train, test = write(tmp_path), write(tmp_path, 'test', (2, 9))
    for split, rows, labels in (('train', train, [9, 0, 3]), ('test', test, [1, 8])):
        data = STL10(str(tmp_path), split)
        assert data.get_gt_labels().tolist() == labels
        assert data.test_mode == (split == 'test')
        for i, row in enumerate(rows):
            img = data[i]['img']
            assert (img.shape, img.dtype, img.flags.c_contiguous) == ((96, 96, 3), np.uint8, True)
            # Plane, then column, then row.
            for y, x, colour in ((0, 1, 0), (5, 7, 2), (95, 94, 1)):
                assert img[y, x, 2 - colour] == row[96 * 96 * colour + 96 * x + y]


def test_the_names_of_the_classes_are_in_the_order_of_the_labels(tmp_path: Path):
    write(tmp_path)
    classes = STL10(str(tmp_path)).metainfo['classes']
    assert (len(classes), classes[0], classes[5], classes[9]) == (10, 'airplane', 'dog', 'truck')


def test_a_config_builds_it_and_its_pipeline_runs(tmp_path: Path):
    write(tmp_path)
    data = DATASETS.build(
        dict(
            type='kd_plugins.STL10',
            data_root=str(tmp_path),
            split='train',
            _scope_='mmpretrain',
            pipeline=[dict(type='Resize', scale=(32, 32), backend='pillow'), dict(type='PackInputs')],
        )
    )
    sample = data[0]
    assert sample['inputs'].shape == (3, 32, 32)
    assert sample['data_samples'].gt_label.tolist() == [9]


def test_other_bytes_than_the_official_ones_are_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    write(tmp_path)
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        STL10(str(tmp_path))
        (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert 'train_X.bin' in warning
        assert 'train_y.bin' in warning
        caplog.clear()
        for name in ('train_X.bin', 'train_y.bin'):
            digest = hashlib.md5((tmp_path / 'stl10_binary' / name).read_bytes()).hexdigest()
            monkeypatch.setitem(stl10._MD5, name, digest)
        STL10(str(tmp_path))
        assert not caplog.records
    finally:
        logger.removeHandler(caplog.handler)


def test_what_is_wrong_is_told(tmp_path: Path):
    write(tmp_path)
    images, labels = (tmp_path / 'stl10_binary' / f'train_{x}.bin' for x in 'Xy')
    assert refused(tmp_path, 'unlabeled') == "STL10: split 'unlabeled' is unknown; expected train or test"
    message = refused(tmp_path, 'test')
    assert message.startswith(f'{tmp_path}/stl10_binary/test_X.bin, {tmp_path}/stl10_binary/test_y.bin: missing; ')
    assert message.endswith(f'kd-prepare-data stl10 --root {tmp_path}')
    labels.write_bytes(bytes([1, 2, 11]))
    assert f'{labels}: expected 3 classes from 1 to 10' in refused(tmp_path)
    assert 'got 3 from 1 to 11' in refused(tmp_path)
    labels.write_bytes(bytes([0, 2, 3]))
    assert 'got 3 from 0 to 3' in refused(tmp_path)
    labels.write_bytes(bytes([1, 2]))
    assert 'got 2 from 1 to 2' in refused(tmp_path)
    labels.write_bytes(b'')
    assert 'got 0; ' in refused(tmp_path)
    images.write_bytes(images.read_bytes()[:-1])
    assert f'{images}: expected whole images of 27648 bytes each, got 82943 bytes' in refused(tmp_path)
    images.write_bytes(b'')
    assert 'got 0 bytes' in refused(tmp_path)
