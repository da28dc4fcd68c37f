"""VOC: what mmdet reads is unchanged, and every mistake in the data is told in one line."""

import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from mmdet.datasets import VOCDataset as StockVOCDataset
from mmengine.registry import DATASETS

from kd_plugins.datasets.drawing import CLASSES, draw_voc
from kd_plugins.datasets.voc import VOCDataset
from kd_plugins.errors import UserError

DRAWN = dict(classes=CLASSES)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return draw_voc(tmp_path / 'VOCdevkit', 2, 1, 1, (48, 40))


def _data(root: Path, split: str = 'trainval', **options) -> VOCDataset:
    return VOCDataset(
        data_root=str(root),
        ann_file=f'VOC2007/ImageSets/Main/{split}.txt',
        data_prefix=dict(sub_data_root='VOC2007/'),
        pipeline=[],
        metainfo=DRAWN,
        **options,
    )


def _edit(root: Path, old: str, new: str, name: str = '000002') -> None:
    path = root / f'VOC2007/Annotations/{name}.xml'
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def _box(root: Path, xmin: int, ymin: int, xmax: int, ymax: int) -> None:
    path = root / 'VOC2007/Annotations/000002.xml'
    head, _, rest = path.read_text().partition('<bndbox>')
    box = f'<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>'
    path.write_text(f'{head}<bndbox>{box}{rest[rest.index("</bndbox>") :]}')


def test_sound_data_are_read_as_by_mmdet(root: Path) -> None:
    stock = StockVOCDataset(
        data_root=str(root),
        ann_file='VOC2007/ImageSets/Main/trainval.txt',
        data_prefix=dict(sub_data_root='VOC2007/'),
        pipeline=[],
        metainfo=DRAWN,
    )
    own = _data(root)
    assert len(own) == 3
    assert [own.get_data_info(i) for i in range(3)] == [stock.get_data_info(i) for i in range(3)]


def test_blank_lines_and_spaces_in_a_split_file_are_no_names(root: Path) -> None:
    split = root / 'VOC2007/ImageSets/Main/trainval.txt'
    expected = _data(root)
    split.write_text('\n'.join(f'{line}  ' for line in split.read_text().splitlines()) + '\n\n \n')
    assert [*map(_data(root).get_data_info, range(3))] == [*map(expected.get_data_info, range(3))]


def test_pictures_may_have_any_usual_ending(root: Path) -> None:
    images = root / 'VOC2007/JPEGImages'
    (images / '000001.jpg').rename(images / '000001.JPG')
    cv2.imwrite(str(images / '000002.png'), cv2.imread(str(images / '000002.jpg')))
    (images / '000002.jpg').unlink()
    (images / '000003.png').write_bytes(b'')
    found = [Path(_data(root).get_data_info(i)['img_path']).name for i in range(3)]
    assert found == ['000001.JPG', '000002.png', '000003.jpg']
    (images / '000002.png').unlink()
    with pytest.raises(UserError, match=r'JPEGImages/000002: no such image, with any ending, though .*trainval\.txt'):
        _data(root)


def test_a_split_file_names_nothing_outside(root: Path) -> None:
    (root / 'VOC2007/ImageSets/Main/test.txt').write_text('../../000001')
    with pytest.raises(UserError, match=r"test\.txt names '\.\./\.\./000001', which lies outside"):
        _data(root, 'test')


def test_own_classes_are_not_labelled_with_the_twenty_names(root: Path) -> None:
    assert _data(root).metainfo['dataset_type'] is None
    twenty = VOCDataset(
        data_root=str(root),
        ann_file='VOC2007/ImageSets/Main/trainval.txt',
        data_prefix=dict(sub_data_root='VOC2007/'),
        pipeline=[],
        lazy_init=True,
    )
    assert twenty.metainfo['dataset_type'] == 'VOC2007'


def test_a_voc_class_that_is_left_out_is_skipped(root: Path) -> None:
    path = root / 'VOC2007/Annotations/000002.xml'
    count = path.read_text().count('<object>')
    name = path.read_text().partition('<object>')[2].partition('<name>')[2].partition('<')[0]
    _edit(root, f'<name>{name}</name>', '<name>person</name>')
    assert len(_data(root).get_data_info(1)['instances']) == count - 1


def test_an_unknown_class_is_named(root: Path) -> None:
    text = (root / 'VOC2007/Annotations/000002.xml').read_text()
    name = text.partition('<object>')[2].partition('<name>')[2].partition('<')[0]
    _edit(root, f'<name>{name}</name>', '<name>squrae</name>')
    with pytest.raises(UserError, match=r"000002\.xml: unknown class 'squrae', expected one of circle") as error:
        _data(root)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'box',
    [
        (10, 5, 10, 20),
        (20, 5, 10, 20),
        (5, 20, 10, 20),
        (5, 5, 50, 20),
        (5, 5, 20, 42),
        (-3, 5, 20, 20),
        (5, -3, 20, 20),
    ],
)
def test_a_box_that_is_empty_or_outside_is_named(root: Path, box: tuple[int, int, int, int]) -> None:
    _box(root, *box)
    with pytest.raises(UserError, match=rf'000002\.xml: box xmin={box[0]} ymin={box[1]} .* 48x40 image'):
        _data(root)


@pytest.mark.parametrize('box', [(1, 1, 48, 40), (0, 0, 47, 39), (10, 10, 11, 11)])
def test_a_box_up_to_the_border_is_fine_counted_from_0_or_1(root: Path, box: tuple[int, int, int, int]) -> None:
    _box(root, *box)
    assert _data(root).get_data_info(1)['instances'][0]['bbox'] == [x - 1 for x in box]


def test_what_is_no_annotation_is_named(root: Path) -> None:
    _edit(root, '<bndbox>', '<box>')
    with pytest.raises(UserError, match=r'000002\.xml: not XML'):
        _data(root)
    (root / 'VOC2007/Annotations/000002.xml').write_text('<annotation><object/></annotation>')
    with pytest.raises(UserError, match=r'000002\.xml: not a VOC annotation; expected size'):
        _data(root)
    (root / 'VOC2007/Annotations/000002.xml').unlink()
    with pytest.raises(UserError, match=r'000002\.xml: missing, though .*trainval\.txt lists it'):
        _data(root)


def test_missing_folders_and_lists_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'nowhere: VOC data root is missing'):
        _data(tmp_path / 'nowhere')
    with pytest.raises(UserError, match=r'Main/tset\.txt: split file is missing'):
        _data(root, 'tset')
    (root / 'VOC2007/ImageSets/Main/test.txt').write_text('')
    with pytest.raises(UserError, match=r'Main/test\.txt: split file lists no image'):
        _data(root, 'test')


def test_a_broken_picture_is_replaced_in_training_only(root: Path) -> None:
    path = root / 'VOC2007/JPEGImages/000002.jpg'
    path.write_bytes(path.read_bytes()[:-50])
    options = dict(
        type='kd_plugins.VOCDataset',
        data_root=str(root),
        ann_file='VOC2007/ImageSets/Main/trainval.txt',
        data_prefix=dict(sub_data_root='VOC2007/'),
        metainfo=DRAWN,
    )

    def build(skip: bool, **more) -> VOCDataset:
        return DATASETS.build(options | more | dict(pipeline=[dict(type='kd_plugins.LoadImage', skip_corrupt=skip)]))

    assert build(True)[1]['img_id'] in ('000001', '000003')
    with pytest.raises(UserError, match=r'000002\.jpg: image file is truncated'):
        build(False)[1]
    with pytest.raises(Exception, match='should not get `None`'):
        build(True, test_mode=True)[1]


def test_mmdet_is_imported_for_detection_only() -> None:
    code = (
        'import sys; from kd_plugins.registry import DATASETS, TRANSFORMS; import kd_plugins.datasets; '
        "TRANSFORMS.get('kd_plugins.LoadImage'); assert DATASETS.get('kd_plugins.VOCDataset'); "
        "raise SystemExit('mmdet' in sys.modules)"
    )
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
