import logging
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS

from kd_plugins.datasets import market1501
from kd_plugins.datasets.market1501 import Market1501
from kd_plugins.datasets.samplers import PKSampler
from kd_plugins.errors import UserError

TRAIN = ['1500_c6s3_000451_03.jpg', '0002_c1s1_000451_03.jpg', '0007_c3s2_000009_01.jpg', '0002_c4s1_000451_02.jpg']
QUERY = ['0011_c2s1_000301_00.jpg', '0010_c5s1_000301_00.jpg']
GALLERY = [
    '0010_c1s1_000176_02.jpg',
    '0000_c3s1_000151_01.jpg',
    '-1_c1s3_034201_01.jpg',
    '0011_c6s4_002202_05.jpg',
    '-1_c6s1_000401_03.jpg',
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / 'Market-1501-v15.09.15'
    for folder, names in (('bounding_box_train', TRAIN), ('query', QUERY), ('bounding_box_test', GALLERY)):
        (root / folder).mkdir(parents=True)
        (root / folder / 'Thumbs.db').write_bytes(b'\0')
        for number, name in enumerate(names):
            assert cv2.imwrite(str(root / folder / name), np.full((16, 8, 3), 40 * number, np.uint8))
    return root


def records(root: Path, split: str) -> list[tuple]:
    """Return each record's name in the split's folders, identity, camera and whether it is a query."""
    data = Market1501(str(root), split)
    infos = [data.get_data_info(i) for i in range(len(data))]
    return [(str(Path(x['img_path']).relative_to(root)), x['identity'], x['camera'], x['is_query']) for x in infos]


def refused(root: Path, split: str) -> str:
    with pytest.raises(UserError) as error:
        Market1501(str(root), split)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_identities_of_training_become_labels_in_their_order(root: Path) -> None:
    assert records(root, 'train') == [
        ('bounding_box_train/0002_c1s1_000451_03.jpg', 2, 1, False),
        ('bounding_box_train/0002_c4s1_000451_02.jpg', 2, 4, False),
        ('bounding_box_train/0007_c3s2_000009_01.jpg', 7, 3, False),
        ('bounding_box_train/1500_c6s3_000451_03.jpg', 1500, 6, False),
    ]
    data = Market1501(str(root))
    assert data.get_gt_labels().tolist() == [0, 0, 1, 2]
    assert data.metainfo['classes'] == data.CLASSES == ('0002', '0007', '1500')
    assert not data.test_mode


def test_a_gallery_keeps_distractors_and_leaves_junk_out(root: Path) -> None:
    query = [('query/0010_c5s1_000301_00.jpg', 10, 5, True), ('query/0011_c2s1_000301_00.jpg', 11, 2, True)]
    gallery = [
        ('bounding_box_test/0000_c3s1_000151_01.jpg', 0, 3, False),
        ('bounding_box_test/0010_c1s1_000176_02.jpg', 10, 1, False),
        ('bounding_box_test/0011_c6s4_002202_05.jpg', 11, 6, False),
    ]
    assert records(root, 'query') == query
    assert records(root, 'gallery') == gallery
    assert records(root, 'test') == query + gallery
    data = Market1501(str(root), 'test')
    assert data.test_mode
    assert 'gt_label' not in data.get_data_info(0)
    assert data.CLASSES is None


def test_the_order_does_not_depend_on_the_file_system(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = records(root, 'test')
    for backwards in (False, True):
        monkeypatch.setattr(
            market1501,
            'list_dir_or_file',
            lambda folder, list_dir, b=backwards: iter(
                sorted((path.name for path in Path(folder).iterdir()), reverse=b)
            ),
        )
        assert records(root, 'test') == before


def test_images_of_any_ending_are_taken_and_the_log_says_what_is_left_out(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = [(Path(path).stem, *rest) for path, *rest in records(root, 'test')]
    for i, path in enumerate(sorted(root.rglob('*.jpg'))):
        path.rename(path.with_suffix(('.JPG', '.png', '.jpeg', '.bmp')[i % 4]))
    logger = MMLogger.get_instance('market')
    logger.addHandler(caplog.handler)
    caplog.clear()  # an earlier test's logger has the same handler
    with caplog.at_level(logging.INFO):
        assert [(Path(path).stem, *rest) for path, *rest in records(root, 'test')] == expected
    assert [message for message in caplog.messages if 'left out' in message] == [
        f'{root / folder}: 1 of {count} files are left out, since they are not images, as Thumbs.db'
        for folder, count in (('query', 3), ('bounding_box_test', 6))
    ]


def test_a_picture_in_two_formats_does_not_count_twice(root: Path) -> None:
    path = root / 'query' / QUERY[0]
    path.with_suffix('.png').write_bytes(path.read_bytes())
    assert refused(root, 'test').startswith(f'{root}/query: {QUERY[0]} and {path.stem}.png are the same image')


def test_it_is_found_by_name_and_its_fields_reach_the_evaluator(root: Path) -> None:
    data = DATASETS.build(
        {
            'type': 'kd_plugins.Market1501',
            'data_root': str(root.parent),
            'data_prefix': root.name,
            'split': 'test',
            'pipeline': [
                {'type': 'kd_plugins.LoadImage'},
                {'type': 'mmpretrain.PackInputs', 'meta_keys': ('img_path', 'identity', 'camera', 'is_query')},
            ],
        }
    )
    assert len(data) == 5
    for i, row in enumerate(records(root, 'test')):
        sample = data[i]
        assert sample['inputs'].shape == (3, 16, 8)
        path, *rest = (sample['data_samples'].get(key) for key in ('img_path', 'identity', 'camera', 'is_query'))
        assert (str(Path(path).relative_to(root)), *rest) == row


def test_the_sampler_reads_labels_of_a_subset(root: Path) -> None:
    data = Market1501(str(root), indices=[0, 1, 3])
    assert data.metainfo['classes'] == ('0002', '0007', '1500')  # a head keeps its width on a subset
    assert Counter(PKSampler(data, 2, 2, seed=0)) == {0: 1, 1: 1, 2: 2}
    with pytest.raises(UserError, match='no gt_label'):
        PKSampler(Market1501(str(root), 'test'), 1, 2, seed=0)


def test_a_missing_root_or_folder_tells_how_to_get_it(root: Path) -> None:
    nowhere = root.parent / 'nowhere'
    message = refused(nowhere, 'train')
    assert message.startswith(f'{nowhere}: Market-1501 is missing')
    assert message.endswith(f'kd-prepare-data market1501 --root {nowhere}')
    for path in (root / 'query').iterdir():
        path.unlink()
    (root / 'query' / 'Thumbs.db').write_bytes(b'\0')
    assert refused(root, 'test').startswith(f'{root / "query"}: holds no image')
    (root / 'query' / 'Thumbs.db').unlink()
    (root / 'query').rmdir()
    for split in ('query', 'test'):
        assert refused(root, split).startswith(f'{root / "query"}: folder is missing')
    assert len(Market1501(str(root), 'gallery')) == 3


def test_a_gallery_of_junk_alone_is_empty(root: Path) -> None:
    for name in GALLERY:
        if not name.startswith('-1'):
            (root / 'bounding_box_test' / name).unlink()
    assert refused(root, 'gallery').startswith(f'{root / "bounding_box_test"}: holds no image')


def test_an_unknown_split_is_told_the_known_ones() -> None:
    with pytest.raises(UserError, match="split 'val' is unknown; expected one of train, test, query, gallery"):
        Market1501('', 'val', lazy_init=True)


@pytest.mark.parametrize('name', ['portrait.jpg', '0002-c1s1_000451_03.jpg', '-2_c1s1_000451_03.jpg', 'c1s1_1_03.jpg'])
@pytest.mark.parametrize(('split', 'folder'), [('train', 'bounding_box_train'), ('gallery', 'bounding_box_test')])
def test_a_name_that_does_not_tell_the_person_is_named(root: Path, name: str, split: str, folder: str) -> None:
    (root / folder / name).write_bytes(b'')
    assert refused(root, split).startswith(f'{root / folder / name}: the name does not give identity and camera')


@pytest.mark.parametrize('name', ['-1_c1s1_000451_03.jpg', '0000_c1s1_000451_03.jpg'])
@pytest.mark.parametrize(('split', 'folder'), [('train', 'bounding_box_train'), ('query', 'query')])
def test_junk_and_distractors_belong_in_the_gallery(root: Path, name: str, split: str, folder: str) -> None:
    (root / folder / name).write_bytes(b'')
    message = refused(root, split)
    assert message.startswith(f'{root / folder / name}: identity {int(name.partition("_")[0])} is ')
    assert 'bounding_box_test/ only' in message
