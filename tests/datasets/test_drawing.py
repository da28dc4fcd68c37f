"""The drawn sets: the same bytes for the same seed, the official layout, boxes that fit what is drawn."""

import hashlib
from contextlib import nullcontext
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from kd_plugins.datasets import drawing
from kd_plugins.datasets.drawing import CLASSES, draw_classification, draw_voc
from kd_plugins.errors import UserError

IMAGES = {'train': 6, 'val': 3, 'test': 4}
SMALL = IMAGES | {'size': (48, 40)}


def _digest(root: Path) -> str:
    files = sorted(path for path in root.rglob('*') if path.is_file())
    return hashlib.sha256(b''.join(str(p.relative_to(root)).encode() + p.read_bytes() for p in files)).hexdigest()


def _annotations(root: Path) -> list[ElementTree.Element]:
    return [ElementTree.parse(path).getroot() for path in sorted((root / 'VOC2007/Annotations').iterdir())]


@pytest.mark.parametrize(
    'draw',
    [
        lambda root, seed: draw_voc(root, **SMALL, seed=seed),
        lambda root, seed: draw_classification(root, 2, 1, 24, seed),
    ],
)
def test_the_seed_alone_decides_the_bytes(tmp_path: Path, draw) -> None:
    first, again, other = (draw(tmp_path / name, seed) for name, seed in (('a', 3), ('b', 3), ('c', 4)))
    assert _digest(first) == _digest(again) != _digest(other)


def test_a_picture_does_not_depend_on_how_many_are_drawn(tmp_path: Path) -> None:
    few, many = draw_voc(tmp_path / 'a', **SMALL), draw_voc(tmp_path / 'b', **SMALL | {'test': 9})
    for path in sorted((few / 'VOC2007/JPEGImages').iterdir()):
        assert path.read_bytes() == (many / 'VOC2007/JPEGImages' / path.name).read_bytes()


def test_splits_are_disjoint_and_trainval_is_train_and_val(tmp_path: Path) -> None:
    lists = draw_voc(tmp_path / 'a', **SMALL) / 'VOC2007/ImageSets/Main'
    split = {path.stem: path.read_text().split() for path in lists.iterdir()}
    assert {name: len(split[name]) for name in IMAGES} == IMAGES
    assert split['trainval'] == split['train'] + split['val']
    everything = split['trainval'] + split['test']
    assert len(set(everything)) == len(everything)
    for folder, suffix in (('JPEGImages', '.jpg'), ('Annotations', '.xml')):
        assert sorted(p.name for p in (lists.parents[1] / folder).iterdir()) == sorted(x + suffix for x in everything)


def test_annotations_have_the_official_fields_in_order(tmp_path: Path) -> None:
    for root in _annotations(draw_voc(tmp_path / 'a', **SMALL)):
        objects = root.findall('object')
        assert [x.tag for x in root] == [
            'folder',
            'filename',
            'source',
            'owner',
            'size',
            'segmented',
            *['object'] * len(objects),
        ]
        assert [x.text for x in root.find('size')] == ['48', '40', '3']
        assert 1 <= len(objects) <= 4
        for item in objects:
            assert [x.tag for x in item] == ['name', 'pose', 'truncated', 'difficult', 'bndbox']
            assert item.find('name').text in CLASSES
            x1, y1, x2, y2 = (int(item.find('bndbox').find(k).text) for k in ('xmin', 'ymin', 'xmax', 'ymax'))
            assert 1 <= x1 < x2 <= 48
            assert 1 <= y1 < y2 <= 40
            touches = x1 == 1 or y1 == 1 or x2 == 48 or y2 == 40
            assert item.find('truncated').text == str(int(touches))


def test_a_box_frames_exactly_the_painted_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, '_background', lambda rng, size: np.zeros((*size[::-1], 3)))
    monkeypatch.setattr(drawing, '_paint', lambda rng, picture, name, mask: picture + 255.0 * (mask > 0.5)[..., None])
    monkeypatch.setattr(drawing, '_finish', lambda rng, picture: picture)
    singles = 0
    for i in range(30):
        picture, objects, _ = drawing._scene(np.random.default_rng(i), (60, 50))
        if len(objects) == 1:
            singles += 1
            y, x = np.nonzero(picture[..., 0])
            assert objects[0]['bndbox'] == {
                'xmin': x.min() + 1,
                'ymin': y.min() + 1,
                'xmax': x.max() + 1,
                'ymax': y.max() + 1,
            }
    assert singles > 3


def test_difficult_means_mostly_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far, full = (np.zeros((20, 20), np.float32) for _ in range(3))
    near[:10, :8], far[10:, 10:], full[:10, :10] = 1, 1, 1

    def difficult(front: np.ndarray) -> list[int]:
        masks = iter([full, front])
        monkeypatch.setattr(drawing, '_shape', lambda *args: next(masks))
        seed = next(i for i in range(99) if _objects(i) == 2)
        return [x['difficult'] for x in drawing._scene(np.random.default_rng(seed), (20, 20))[1]]

    def _objects(seed: int) -> int:
        rng = np.random.default_rng(seed)
        drawing._background(rng, (20, 20))
        return int(rng.integers(1, 5))

    assert difficult(near) == [1, 0]
    assert difficult(far) == [0, 0]


def test_masks_are_of_the_same_pictures_and_show_what_lies_in_front(tmp_path: Path) -> None:
    plain, masked = draw_voc(tmp_path / 'a', **SMALL), draw_voc(tmp_path / 'b', **SMALL, masks=True)
    for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        for path in (plain / 'VOC2007' / folder).iterdir():
            assert path.read_bytes() == (masked / 'VOC2007' / folder / path.name).read_bytes()
    assert not (plain / 'VOC2007/SegmentationClass').exists()
    for root in _annotations(masked):
        path = masked / 'VOC2007/SegmentationClass' / root.find('filename').text.replace('.jpg', '.png')
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert labels.shape == (40, 48)
        free = np.ones_like(labels, bool)
        for item in reversed(root.findall('object')):  # from the front
            x1, y1, x2, y2 = (int(item.find('bndbox').find(k).text) for k in ('xmin', 'ymin', 'xmax', 'ymax'))
            number = CLASSES.index(item.find('name').text) + 1
            inside = labels[y1 - 1 : y2, x1 - 1 : x2] == number
            if free[y1 - 1 : y2, x1 - 1 : x2].all():  # nothing in front: each side of its box is touched
                assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()  # noqa: PT018
            free[y1 - 1 : y2, x1 - 1 : x2] = False
        assert not labels[free].any()
    with pytest.raises(UserError, match='was drawn with other options'):
        draw_voc(tmp_path / 'b', **SMALL)


def test_every_shape_has_an_outline_of_its_own() -> None:
    masks = np.stack([drawing._mask(name, np.array([20, 20]), 15, 1.0, 0.0, (40, 40)).ravel() for name in CLASSES])
    assert (masks.sum(1) > 100).all()
    overlap = np.minimum(masks[:, None], masks).sum(2) / np.maximum(masks[:, None], masks).sum(2)
    assert overlap[~np.eye(len(CLASSES), dtype=bool)].max() < 0.9


def test_classification_set_has_a_folder_a_class(tmp_path: Path) -> None:
    root = draw_classification(tmp_path / 'a', 2, 1, 24)
    for split, count in (('train', 2), ('val', 1)):
        assert sorted(x.name for x in (root / split).iterdir()) == sorted(CLASSES)
        for folder in (root / split).iterdir():
            pictures = [cv2.imread(str(path)) for path in folder.iterdir()]
            assert [x.shape for x in pictures] == [(24, 24, 3)] * count


def test_a_complete_set_is_kept_and_other_options_are_refused(tmp_path: Path) -> None:
    """Another run may be reading the set."""
    root = draw_voc(tmp_path / 'a', **SMALL)
    written = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    draw_voc(root, **SMALL)
    with pytest.raises(UserError, match='a: was drawn with other options or by another version; name another root or'):
        draw_voc(root, **SMALL | {'test': 2})
    assert {path: path.stat().st_mtime_ns for path in root.rglob('*')} == written
    assert [x.name for x in tmp_path.iterdir()] == ['a']


@pytest.mark.parametrize('same', [True, False])
def test_what_another_process_has_drawn_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    other = draw_voc(tmp_path / 'other', **SMALL | ({} if same else {'test': 2}))
    own = drawing._annotation

    def annotation(*args: object) -> str:
        if other.exists():
            other.rename(tmp_path / 'a')
        return own(*args)

    monkeypatch.setattr(drawing, '_annotation', annotation)
    inode = other.stat().st_ino
    with nullcontext() if same else pytest.raises(UserError, match='was drawn with other options'):
        draw_voc(tmp_path / 'a', **SMALL)
    assert (tmp_path / 'a').stat().st_ino == inode
    assert [x.name for x in tmp_path.iterdir()] == ['a']


def test_an_interrupted_drawing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(drawing, '_annotation', interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw_voc(tmp_path / 'a', **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/file').write_text('x')
    with pytest.raises(UserError, match=r'mine: exists, but is not a drawn data set'):
        draw_voc(tmp_path / 'mine')
    assert (tmp_path / 'mine/file').read_text() == 'x'
