"""Feature files: what is read, and what is refused in one line."""

import pickle
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from kd_plugins.errors import UserError
from kd_plugins.evaluation import ReIDFeatures, load_features, save_features

ARRAYS = dict(
    query_features=np.arange(6, dtype=np.float32).reshape(2, 3),
    query_ids=np.array([1, 2]),
    query_cams=np.array([1, 1]),
    gallery_features=np.ones((4, 3), np.float32),
    gallery_ids=np.array([1, -1, 0, 2]),
    gallery_cams=np.array([2, 2, 2, 2]),
)


def test_a_file_and_a_folder_give_the_same_and_a_folder_is_not_read_into_memory(tmp_path: Path) -> None:
    paths = dict(query_paths=np.array(['a', 'b']), gallery_paths=np.array(list('cdef')))
    save_features(ReIDFeatures(**ARRAYS, **paths), tmp_path / 'new' / 'f.npz')
    for name, value in ARRAYS.items():
        np.save(tmp_path / f'{name}.npy', value)
    (tmp_path / 'notes.npy').write_text('no array')
    file, folder, one = (load_features(tmp_path / name) for name in ('new/f.npz', '.', 'query_ids.npy'))
    for name, value in ARRAYS.items():
        for found in (file, folder, one):
            np.testing.assert_array_equal(getattr(found, name), value)
    assert isinstance(folder.gallery_features, np.memmap)
    assert (file.gallery_paths.tolist(), folder.gallery_paths) == (list('cdef'), None)
    assert [x.name for x in (tmp_path / 'new').iterdir()] == ['f.npz']


def test_other_arrays_of_a_file_are_left_alone(tmp_path: Path) -> None:
    np.savez(tmp_path / 'f.npz', **changed('notes', np.array([{}, 'text'], dtype=object)))
    found = load_features(tmp_path / 'f.npz')
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(getattr(found, name), value)


def test_a_file_that_cannot_be_written_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'f.npz'
    save_features(ReIDFeatures(**ARRAYS), path)
    before = path.read_bytes()

    def full(file: BinaryIO, **arrays: np.ndarray) -> None:
        file.write(b'PK')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(np, 'savez', full)
    with pytest.raises(UserError, match=r'f\.npz cannot be written \(No space left on device\)'):
        save_features(ReIDFeatures(**ARRAYS), path)
    assert [x.name for x in tmp_path.iterdir()] == ['f.npz']
    assert path.read_bytes() == before


def test_junk_is_left_out_with_all_that_belongs_to_it() -> None:
    features = ReIDFeatures(**ARRAYS, gallery_paths=np.array(list('cdef')))
    kept = features.without_junk()
    assert (kept.gallery_ids.tolist(), kept.gallery_paths.tolist()) == ([1, 0, 2], ['c', 'e', 'f'])
    assert len(kept.gallery_features) == len(kept.gallery_cams) == 3
    assert kept.without_junk() is kept


def changed(name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    return ARRAYS | {name: value}


def without(name: str) -> dict[str, np.ndarray]:
    return {key: value for key, value in ARRAYS.items() if key != name}


@pytest.mark.parametrize(
    ('arrays', 'message'),
    [
        (changed('gallery_features', np.empty((0, 3))), 'gallery_features is empty'),
        (changed('query_features', np.empty((0, 3))), 'query_features is empty'),
        (changed('query_features', np.ones(3)), 'query_features: expected numbers of shape'),
        (changed('query_features', np.array([['a', 'b']])), 'query_features: expected numbers of shape'),
        (changed('query_features', np.ones((2, 5))), 'query_features have 5 dimensions, gallery_features 3'),
        (changed('gallery_ids', np.array([1, 2])), 'gallery_ids: expected one for each of the 4 rows'),
        (changed('gallery_cams', np.ones(4)), 'gallery_cams: expected integers, got float64'),
        (
            changed('gallery_features', np.array([[0.0, 0, 0], [1, 2, 3], [1, np.nan, 1], [0, 0, 1]])),
            'gallery_features: row 2 holds a number that is not finite',
        ),
        (changed('query_features', np.array([[0.0, np.inf, 0], [1, 2, 3]])), 'query_features: row 0 holds'),
        (changed('query_features', np.array([[0, 1, 0], [1, -np.inf, 3]], np.float16)), 'query_features: row 1 holds'),
        (without('query_cams'), "lacks the array 'query_cams'; its nearest names: query_ids"),
        ({'x': np.ones(3)}, "lacks the array 'query_features'; its nearest names: x"),
    ],
)
def test_mistakes_are_reported_with_the_file(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = tmp_path / 'f.npz'
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=message) as error:
        load_features(path)
    assert str(path) in str(error.value)


def test_a_file_in_the_place_of_the_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    one = np.ones(1, int)
    with pytest.raises(UserError, match='cannot be written'):
        save_features(ReIDFeatures(np.ones((1, 4)), one, one, np.ones((1, 4)), one, one), tmp_path / 'file/f.npz')


@pytest.mark.parametrize('lost', [b')', b'}', b"'"])
def test_a_damaged_header_is_reported(tmp_path: Path, lost: bytes) -> None:
    for name in ('query_features', 'gallery_features'):
        np.save(tmp_path / f'{name}.npy', np.ones((3, 4)))
    file = tmp_path / 'query_features.npy'
    file.write_bytes(file.read_bytes().replace(lost, b' ', 1))
    with pytest.raises(UserError, match='holds no readable arrays'):
        load_features(tmp_path)


def test_the_gallery_is_read_once(tmp_path: Path) -> None:
    class Counted(np.ndarray):
        reads = 0

        def __getitem__(self, index: object) -> object:
            Counted.reads += 1
            return np.asarray(super().__getitem__(index))

        def min(self, *args: object, **options: object) -> object:
            raise AssertionError('a pass of its own')

        max = min

    one, x = np.ones(3, int), np.ones((3, 4)).view(Counted)
    ReIDFeatures(np.ones((3, 4)), one, one, x, one, one)
    assert Counted.reads == 1


def test_unreadable_files_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='does not exist: expected features'):
        load_features(tmp_path / 'none.npz')
    whole = tmp_path / 'whole.npz'
    np.savez(whole, **ARRAYS)
    (tmp_path / 'half.npz').write_bytes(whole.read_bytes()[:200])
    (tmp_path / 'text.npz').write_text('no arrays')
    (tmp_path / 'pickle.npz').write_bytes(pickle.dumps(ARRAYS))
    np.savez(tmp_path / 'object.npz', **changed('query_ids', np.array([1, {}], dtype=object)))
    packed = tmp_path / 'packed.npz'
    np.savez_compressed(packed, **changed('gallery_features', np.random.default_rng(0).random((4, 3))))
    damaged = bytearray(packed.read_bytes())
    damaged[60:80] = bytes(20)
    packed.write_bytes(damaged)
    for name in ('half', 'text', 'pickle', 'object', 'packed'):
        with pytest.raises(UserError, match=f'{name}.npz holds no readable arrays'):
            load_features(tmp_path / f'{name}.npz')
