"""Broken images are named, or left out on demand; never trained on."""

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.dataset import BaseDataset
from mmengine.logging import MMLogger
from mmpretrain.datasets import CustomDataset
from PIL import Image

from kd_plugins.datasets import LoadImage, LoadSegMap
from kd_plugins.errors import UserError
from kd_plugins.registry import TRANSFORMS


def _picture(path: Path, seed: int = 0) -> Path:
    noise = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    cv2.imwrite(str(path), noise)
    return path


def _truncate(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def test_a_whole_image_loads_as_with_mmcv(tmp_path: Path) -> None:
    for name in ('a.jpg', 'a.png', 'a.bmp'):
        path = _picture(tmp_path / name)
        results = LoadImage()({'img_path': str(path)})
        assert np.array_equal(results['img'], cv2.imread(str(path)))
        assert results['img_shape'] == results['ori_shape'] == (24, 32)
    assert LoadImage(to_float32=True)({'img_path': str(path)})['img'].dtype == np.float32


@pytest.mark.parametrize('name', ['a.jpg', 'a.png'])
@pytest.mark.parametrize('share', [0, 0.3, 0.9, 0.999])
def test_a_truncated_image_is_named_with_the_remedy(tmp_path: Path, name: str, share: float) -> None:
    path = _truncate(_picture(tmp_path / name), share)
    with pytest.raises(UserError, match=rf'{name}: image file (is trunc|cannot be dec).*skip_corrupt') as error:
        LoadImage()({'img_path': str(path)})
    assert '\n' not in str(error.value)


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_image(tmp_path: Path) -> None:
    path = _picture(tmp_path / 'a.jpg')
    data = path.read_bytes()
    thumbnail = b'Exif\0\0' + data
    with_thumbnail = data[:2] + b'\xff\xe1' + (len(thumbnail) + 2).to_bytes(2, 'big') + thumbnail + data[2:]
    path.write_bytes(with_thumbnail + b'appended by a camera')
    assert LoadImage()({'img_path': str(path)})['img'].shape == (24, 32, 3)
    path.write_bytes(with_thumbnail[:-10])
    with pytest.raises(UserError, match='truncated'):
        LoadImage()({'img_path': str(path)})


def _annotated(path: Path, height: int, width: int, **load) -> dict:
    instances = [dict(bbox=[0, 0, 5, 5], bbox_label=0)]
    return LoadImage(**load)(dict(img_path=str(path), height=height, width=width, instances=instances))


def test_a_picture_of_another_size_than_its_annotation_says_is_named(tmp_path: Path) -> None:
    path = _picture(tmp_path / 'a.png')
    assert _annotated(path, 24, 32)['img'].shape == (24, 32, 3)
    with pytest.raises(UserError, match=r'a\.png: image file is 32x24, its annotation says 24x32; replace it'):
        _annotated(path, 32, 24)
    assert _annotated(path, 32, 24, skip_corrupt=True) is None


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
def test_a_picture_that_exif_turns_is_not_put_under_boxes_of_the_stored_one(tmp_path: Path, backend: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(_picture(tmp_path / 'a.jpg')).save(tmp_path / 'a.jpg', exif=exif)
    assert _annotated(tmp_path / 'a.jpg', 32, 24, imdecode_backend=backend)['img'].shape == (32, 24, 3)
    with pytest.raises(UserError, match=r'a\.jpg: .*32x24: EXIF orientation 6 .*color_ignore_orientation') as error:
        _annotated(tmp_path / 'a.jpg', 24, 32, imdecode_backend=backend)
    assert '\n' not in str(error.value)
    stored = _annotated(tmp_path / 'a.jpg', 24, 32, imdecode_backend=backend, color_type='color_ignore_orientation')
    assert stored['img'].shape == (24, 32, 3)


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
@pytest.mark.parametrize('ending', ['png', 'tif'])
def test_other_formats_that_exif_turns_are_refused_with_what_helps(tmp_path: Path, backend: str, ending: str) -> None:
    exif, path = Image.Exif(), tmp_path / f'a.{ending}'
    exif[0x0112] = 6
    Image.open(_picture(tmp_path / 'a.jpg')).save(path, exif=exif)
    assert _annotated(path, 32, 24, imdecode_backend=backend)['img'].shape == (32, 24, 3)
    helps = ending == 'png'
    with pytest.raises(UserError, match=r'a\.(png|tif): .*32x24: EXIF orientation 6 turned it; for .*') as error:
        _annotated(path, 24, 32, imdecode_backend=backend)
    assert ("set color_type='color_ignore_orientation'" in str(error.value)) == helps
    assert ('save the stored pixels without it' in str(error.value)) != helps
    options = dict(imdecode_backend=backend, color_type='color_ignore_orientation')
    if helps:
        assert _annotated(path, 24, 32, **options)['img'].shape == (24, 32, 3)
    else:
        with pytest.raises(UserError, match='save the stored pixels'):
            _annotated(path, 24, 32, **options)


def test_a_png_whose_exif_comes_last_and_a_webp_which_is_not_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(_picture(tmp_path / 'a.jpg'))
    for name in ('a.png', 'a.webp'):
        image.save(tmp_path / name, exif=exif)
    data = (tmp_path / 'a.png').read_bytes()
    at = data.find(b'eXIf') - 4
    end = at + 12 + int.from_bytes(data[at : at + 4], 'big')
    (tmp_path / 'a.png').write_bytes(data[:at] + data[end:-12] + data[at:end] + data[-12:])
    with pytest.raises(UserError, match='EXIF orientation 6 turned it'):
        _annotated(tmp_path / 'a.png', 24, 32)
    with pytest.raises(UserError, match='its annotation says 24x32; replace it'):
        _annotated(tmp_path / 'a.webp', 32, 24)


@pytest.mark.parametrize('name', ['a.jpg', 'a.png', 'a.tif'])
def test_a_picture_that_exif_turns_upside_down_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(_picture(tmp_path / 'a.jpg')).save(tmp_path / name, exif=exif)
    logger = MMLogger.get_instance('orientation')
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING):
        _annotated(tmp_path / name, 24, 32)
        LoadImage(color_type='color_ignore_orientation')(dict(img_path=str(tmp_path / name)))
        mapped = dict(img_path=str(tmp_path / name), seg_map_path='a_labels.png')
        LoadImage(color_type='color_ignore_orientation')(dict(mapped))
        LoadImage()(mapped)
        LoadImage()(dict(img_path=str(tmp_path / name)))
    stored = 'save the stored pixels without it' if name == 'a.tif' else "set color_type='color_ignore_orientation'"
    line = 'image file is turned by its EXIF orientation 3: its {} must be those of the turned image, or else ' + stored
    # OpenCV turns a TIFF whatever it is told, and the second loader has a memory of its own.
    labels = 2 if name == 'a.tif' else 1
    assert [x.partition(f'{name}: ')[2] for x in caplog.messages if name in x] == [
        line.format('boxes'),
        *[line.format('labels')] * labels,
    ]


@pytest.mark.parametrize('orientation', [0, 1, 9])
def test_a_picture_that_exif_does_not_turn_is_upright(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(_picture(tmp_path / 'a.jpg')).save(tmp_path / 'a.jpg', exif=exif)
    logger = MMLogger.get_instance('upright')
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING):
        assert _annotated(tmp_path / 'a.jpg', 24, 32)['img'].shape == (24, 32, 3)
        with pytest.raises(UserError, match=r'is 32x24, its annotation says 24x32; replace it'):
            _annotated(tmp_path / 'a.jpg', 32, 24)
    assert not any('a.jpg' in x for x in caplog.messages)


def test_what_is_no_image_and_what_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / 'a.jpg').write_text('hello')
    with pytest.raises(UserError, match=r'a\.jpg: image file cannot be decoded'):
        LoadImage()({'img_path': str(tmp_path / 'a.jpg')})
    for skip in (False, True):  # a missing file is a wrong path, not a broken picture
        with pytest.raises(UserError, match=r'b\.jpg: image file is missing'):
            LoadImage(skip_corrupt=skip)({'img_path': str(tmp_path / 'b.jpg')})


def test_what_may_not_be_read_and_what_is_too_large_is_left_out_too(tmp_path: Path) -> None:
    (tmp_path / 'a.jpg').mkdir()  # as an operating system's error, which root meets too
    with pytest.raises(UserError, match=r'a\.jpg: image file cannot be read \(Is a directory\); .*skip_corrupt'):
        LoadImage()({'img_path': str(tmp_path / 'a.jpg')})
    assert LoadImage(skip_corrupt=True)({'img_path': str(tmp_path / 'a.jpg')}) is None
    Image.new('1', (20000, 9000)).save(tmp_path / 'b.png')  # Pillow's limit is 179 million pixels
    _truncate(_picture(tmp_path / 'c.avif'), 0.75)
    for name in ('b.png', 'c.avif'):
        with pytest.raises(UserError, match=rf'{name}: image file cannot be decoded'):
            LoadImage(imdecode_backend='pillow')({'img_path': str(tmp_path / name)})


def test_a_skipped_file_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = _truncate(_picture(tmp_path / 'a.jpg'), 0.5)
    logger = MMLogger.get_instance('loading')
    logger.addHandler(caplog.handler)
    load = LoadImage(skip_corrupt=True)
    with caplog.at_level(logging.WARNING):
        assert [load({'img_path': str(path)}) for _ in range(3)] == [None] * 3
    assert sum('a.jpg: image file is truncated' in record.getMessage() for record in caplog.records) == 1


def _data_set(root: Path, skip: bool, **options) -> BaseDataset:
    (root / 'cat').mkdir()
    for i in range(4):
        _picture(root / 'cat' / f'{i}.jpg', i)
    _truncate(root / 'cat/2.jpg', 0.5)
    return CustomDataset(
        data_root=str(root), pipeline=[dict(type='kd_plugins.LoadImage', skip_corrupt=skip)], **options
    )


def test_each_of_many_files_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    MMLogger.get_instance('many').addHandler(caplog.handler)
    load = LoadImage(skip_corrupt=True)
    for number in range(600):
        load.report(f'{number}.jpg', 'is truncated')
    assert len({record.getMessage() for record in caplog.records}) == 600


def test_a_training_set_takes_another_sample(tmp_path: Path) -> None:
    data = _data_set(tmp_path, True)
    others = {data[i]['img'].tobytes() for i in (0, 1, 3)}
    assert data[2]['img'].tobytes() in others


def test_a_set_that_may_not_skip_says_which_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'cat/2\.jpg'):
        _data_set(tmp_path, False)[2]


def test_a_test_set_never_replaces_a_sample(tmp_path: Path) -> None:
    with pytest.raises(Exception, match='should not get `None`'):
        _data_set(tmp_path, True, test_mode=True)[2]


def test_is_found_by_name_and_refuses_a_misspelt_option() -> None:
    assert isinstance(TRANSFORMS.build(dict(type='kd_plugins.LoadImage', skip_corrupt=True)), LoadImage)
    with pytest.raises(TypeError, match='skip_corupt'):
        TRANSFORMS.build(dict(type='kd_plugins.LoadImage', skip_corupt=True))


def _wide(path: Path, *values: int) -> None:
    labels = np.zeros((24, 32), np.uint16)
    labels.flat[: len(values)] = values
    cv2.imwrite(str(path), labels)


def test_a_label_map_of_16_bits_may_hold_classes_of_8(tmp_path: Path) -> None:
    pytest.importorskip('mmseg.datasets')
    _wide(tmp_path / 'a.png', 65535, 7, 200)
    load = LoadSegMap(dict(type='mmseg.LoadAnnotations'))
    results = dict(seg_map_path=str(tmp_path / 'a.png'), reduce_zero_label=False, seg_fields=[])
    assert load(results)['gt_seg_map'].flat[:4].tolist() == [255, 7, 200, 0]


def _color(path: Path) -> None:
    cv2.imwrite(str(path), np.zeros((24, 32, 3), np.uint8))


@pytest.mark.parametrize(
    ('damage', 'words', 'backends'),
    [
        (lambda path: path.write_text('no image'), 'cannot be decoded', ['pillow', 'cv2']),
        (lambda path: _truncate(path, 0.4), 'cannot be decoded', ['pillow']),
        (Path.unlink, 'is missing; check data_prefix and seg_map_suffix', ['pillow', 'cv2']),
        (_color, 'has 3 values for each pixel, expected one', ['pillow', 'cv2']),
        (lambda path: _wide(path, 26001), 'has class 26001, of 16 bits or more, and', ['pillow', 'cv2']),
        (lambda path: cv2.imwrite(str(path), np.zeros((24, 30), np.uint8)), 'is 30x24, its image 32x24', ['pillow']),
    ],
)
def test_a_label_map_that_is_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage, words: str, backends: list[str]
) -> None:
    pytest.importorskip('mmseg.datasets')
    path = tmp_path / 'a.png'
    labels = np.random.default_rng(0).integers(0, 9, (24, 32), dtype=np.uint8)
    cv2.imwrite(str(path), labels)
    loads = [LoadSegMap(dict(type='mmseg.LoadAnnotations', imdecode_backend=backend)) for backend in backends]

    def results() -> dict:
        return dict(seg_map_path=str(path), ori_shape=(24, 32), reduce_zero_label=False, seg_fields=[])

    assert all(np.array_equal(load(results())['gt_seg_map'], labels) for load in loads)
    damage(path)
    for load in loads:
        with pytest.raises(UserError, match=f'^{path}: label map {words}'):
            load(results())
    lines: list[str] = []
    monkeypatch.setattr('kd_plugins.datasets.loading.print_log', lambda text, *args: lines.append(text))
    load.skip_corrupt = True
    if 'decoded' in words or '30x24' in words:
        assert load(results()) is load(results()) is None
        assert lines == [f'{path}: label map {words}; training takes another sample instead']
    else:  # it would be so for all of them
        with pytest.raises(UserError, match=f'^{path}: label map {words}'):
            load(results())
