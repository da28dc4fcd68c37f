"""Images without labels, from folders, lists and other data sets."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from PIL import Image
from tiny import coco_folder, image_folder

from kd_plugins.data_files import _IMAGE_ENDINGS
from kd_plugins.datasets import UnlabelledImages
from kd_plugins.datasets.drawing import CLASSES, draw_voc
from kd_plugins.errors import UserError
from kd_plugins.registry import DATASETS

PIPELINE = [dict(type='kd_plugins.LoadImage'), dict(type='mmpretrain.PackInputs')]
SKIP = [dict(type='kd_plugins.LoadImage', skip_corrupt=True), dict(type='mmpretrain.PackInputs')]


def _write(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)
    return path


def _paths(data: UnlabelledImages) -> list[str]:
    return [data.get_data_info(i)['img_path'] for i in range(len(data))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for value, name in enumerate(['b.JPEG', 'a/1.png', 'a/deep/er/2.webp', 'a/3.tif', 'c d/4.bmp']):
        _write(tmp_path / 'photos' / name, 10 * value)
    (tmp_path / 'photos/readme.txt').write_text('no image')
    _write(tmp_path / 'photos/.cache/1.png')
    _write(tmp_path / 'photos/a/._1.png')
    return tmp_path / 'photos'


NAMES = ['a/1.png', 'a/3.tif', 'a/deep/er/2.webp', 'b.JPEG', 'c d/4.bmp']


def test_a_folder_gives_all_its_images_sorted_and_no_label(folder: Path) -> None:
    data = UnlabelledImages(str(folder), pipeline=PIPELINE)
    assert _paths(data) == [str(folder / name) for name in NAMES]
    sample = data[0]
    assert sample['inputs'].shape == (3, 8, 8)
    assert (sample['inputs'] == 10).all()
    assert 'gt_label' not in sample['data_samples']
    assert len(list(data)) == 5


def test_every_ending_that_counts_as_an_image_is_read(tmp_path: Path) -> None:
    for ending in _IMAGE_ENDINGS:
        try:
            _write(tmp_path / f'a{ending}', 255)
        except (KeyError, OSError, ValueError):  # a Pillow without that format
            (tmp_path / f'a{ending}').unlink(missing_ok=True)
            continue
        if not cv2.haveImageReader(str(tmp_path / f'a{ending}')):  # an older OpenCV
            (tmp_path / f'a{ending}').unlink()
    data = UnlabelledImages(str(tmp_path), pipeline=PIPELINE)
    assert len(data) >= 12
    for i in range(len(data)):
        assert (data[i]['inputs'] >= 253).all(), _paths(data)[i]


def test_several_folders_each_sorted_in_the_given_order(folder: Path) -> None:
    data = UnlabelledImages(data_prefix=[str(folder / 'c d'), str(folder / 'a')])
    assert _paths(data) == [str(folder / name) for name in ('c d/4.bmp', 'a/1.png', 'a/3.tif', 'a/deep/er/2.webp')]
    assert _paths(UnlabelledImages(str(folder), ['c d', 'a'])) == _paths(data)


def test_a_list_starts_from_its_own_folder_or_from_the_given_one(folder: Path) -> None:
    lines = ['c d/4.bmp', 'a/1.png', str(folder / 'b.JPEG')]
    (folder / 'list.txt').write_text('\n'.join(lines) + '\n\n')
    expected = [str(folder / line) for line in lines]
    assert _paths(UnlabelledImages(ann_file=str(folder / 'list.txt'))) == expected
    assert _paths(UnlabelledImages(str(folder), ann_file='list.txt')) == expected
    assert _paths(UnlabelledImages(data_prefix=folder)) == _paths(UnlabelledImages(str(folder)))
    (folder / 'a/list.txt').write_text('\ufeff1.png\r\n')  # as Windows writes it
    assert _paths(UnlabelledImages(str(folder), 'a', 'a/list.txt')) == [str(folder / 'a/1.png')]


def test_the_labels_of_a_list_are_ignored(folder: Path) -> None:
    (folder / 'list.txt').write_text('c d/4.bmp\t3\na/1.png \t 0\nb.JPEG 1\nc d/4.bmp\n')
    data = UnlabelledImages(ann_file=str(folder / 'list.txt'))
    assert _paths(data) == [str(folder / name) for name in ('c d/4.bmp', 'a/1.png', 'b.JPEG', 'c d/4.bmp')]


def test_other_data_sets_give_their_images_without_annotations(tmp_path: Path) -> None:
    labelled = dict(type='mmpretrain.CustomDataset', data_root=str(image_folder(tmp_path / 'cls')), pipeline=PIPELINE)
    coco = dict(
        type='mmdet.CocoDataset',
        data_root=f'{coco_folder(tmp_path / "coco")}/',
        ann_file='annotations.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=('person',)),
    )
    data = UnlabelledImages(dataset=[labelled, coco], pipeline=PIPELINE)
    assert len(data) == 24 + 4
    assert set(data.get_data_info(25)) == {'img_path', 'sample_idx'}
    assert 'gt_label' not in data[0]['data_samples']
    assert data[27]['inputs'].shape == (3, 64, 64)
    both = UnlabelledImages(str(tmp_path / 'cls'), dataset=dict(type='RepeatDataset', dataset=coco, times=2))
    assert len(both) == 24 + 8


def test_voc_gives_the_images_of_its_split(tmp_path: Path) -> None:
    draw_voc(tmp_path / 'VOCdevkit', train=2, val=1, test=2)
    voc = dict(
        type='kd_plugins.VOCDataset',
        data_root=f'{tmp_path}/VOCdevkit/',
        ann_file='VOC2007/ImageSets/Main/trainval.txt',
        data_prefix=dict(sub_data_root='VOC2007/'),
        metainfo=dict(classes=CLASSES),
    )
    paths = _paths(UnlabelledImages(dataset=voc))
    assert len(paths) == 3
    assert all(Path(path).is_file() for path in paths)


def test_pixels_are_given_as_they_are() -> None:
    source = dict(type='Pixels')
    images = [np.full((4, 4, 3), i, np.uint8) for i in range(3)]

    class Pixels:
        def __len__(self) -> int:
            return len(images)

        def get_data_info(self, i: int) -> dict:
            return dict(img=images[i], gt_label=i)

    source = dict(type=Pixels)
    data = UnlabelledImages(dataset=source, pipeline=[dict(type='mmpretrain.PackInputs')])
    assert [int(data[i]['inputs'].unique()) for i in range(3)] == [0, 1, 2]
    assert 'gt_label' not in data[1]['data_samples']


def test_two_lines_take_the_labels_from_a_config(tmp_path: Path, folder: Path) -> None:
    (tmp_path / 'leaf.py').write_text(
        "_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'\n"
        f"images = dict(type='kd_plugins.UnlabelledImages', data_root='{folder}', pipeline=_base_.train_pipeline)\n"
        'train_dataloader = dict(dataset=dict(_delete_=True, **images), num_workers=0, persistent_workers=False)\n'
    )
    config = Config.fromfile(tmp_path / 'leaf.py')
    batch = next(iter(Runner.build_dataloader(config.train_dataloader)))
    assert len(batch['inputs']) == 5
    assert batch['inputs'][0].shape == (3, 224, 224)
    assert 'gt_label' not in batch['data_samples'][0]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(), 'no images are named: give a folder as data_root'),
        (dict(data_root='{}/none'), r'/none/?: no such folder of images; check data_root'),
        (dict(data_root='{}/empty'), r'/empty/?: no image in this folder nor in any below it'),
        (dict(data_root='{}', data_prefix=['a', 'empty']), r'/empty: no image in this folder'),
        (dict(ann_file='{}/none.txt'), r'/none\.txt: no such list of images'),
        (dict(ann_file='{}/empty.txt'), r'/empty\.txt: the list is empty'),
        (dict(ann_file='{}/b.JPEG'), r'/b\.JPEG: expected a text with the path of an image in each line'),
        (dict(data_root='{}', data_prefix=['a', 'c d'], ann_file='list.txt'), 'can start from one folder, not from 2'),
    ],
)
def test_a_mistake_ends_in_one_line(folder: Path, options: dict, message: str) -> None:
    (folder / 'empty').mkdir()
    (folder / 'empty.txt').write_text('\n \n')
    options = {k: v.format(folder) if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises(UserError, match=message) as error:
        UnlabelledImages(**options)
    assert '\n' not in str(error.value)


def test_data_sets_that_cannot_be_used_are_named(folder: Path) -> None:
    with pytest.raises(UserError, match='list cannot name its images'):
        UnlabelledImages(dataset=dict(type=list))

    class Points(list):
        def get_data_info(self, i: int) -> dict:
            return self[i]

    def points(*entries: dict) -> dict:
        return dict(type=lambda: Points(entries))

    with pytest.raises(UserError, match='Points holds no image'):
        UnlabelledImages(dataset=points())
    with pytest.raises(UserError, match='samples of Points have no img_path and no img, only x, y: give its folder'):
        UnlabelledImages(dataset=points(dict(x=1, y=2)))
    with pytest.raises(UserError, match=r'some of the data sets hold pixels and others name files.*ConcatDataset'):
        UnlabelledImages(str(folder), dataset=points(dict(img=np.zeros((2, 2, 3)))))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The file that all processes log into."""
    MMLogger.get_instance(str(tmp_path), log_file=str(tmp_path / 'log.txt'))
    return tmp_path / 'log.txt'


def test_an_unreadable_image_is_named(folder: Path) -> None:
    (folder / 'a/3.tif').write_text('nothing')
    data = UnlabelledImages(str(folder), pipeline=PIPELINE)
    with pytest.raises(UserError, match=r'a/3\.tif: image file cannot be decoded'):
        data[1]


def test_the_next_readable_image_replaces_a_skipped_one(folder: Path, log: Path) -> None:
    for name in ('a/3.tif', 'a/deep/er/2.webp', 'c d/4.bmp'):
        (folder / name).write_text('nothing')
    data = UnlabelledImages(str(folder), pipeline=SKIP)
    state = np.random.get_state()[1].copy()
    assert [int(data[i]['inputs'][0, 0, 0]) for i in (0, 1, 2, 3, 4, 1)] == [10, 0, 0, 0, 10, 0]
    assert np.array_equal(state, np.random.get_state()[1])
    assert log.read_text().count('cannot be decoded') == 3  # though two of them were met again
    with pytest.raises(Exception, match='should not get `None`'):  # a test set is whole or not at all
        UnlabelledImages(str(folder), pipeline=SKIP, test_mode=True)[1]
    shutil.copy(folder / 'a/3.tif', folder / 'a/1.png')
    shutil.copy(folder / 'a/3.tif', folder / 'b.JPEG')
    with pytest.raises(UserError, match='none of the 5 images can be read'):
        data[0]


def test_workers_report_a_file_once_and_load_what_a_single_process_loads(folder: Path, log: Path) -> None:
    (folder / 'a/3.tif').write_text('nothing')

    def epochs(workers: int) -> list[torch.Tensor]:
        config = dict(
            batch_size=2,
            num_workers=workers,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
            dataset=dict(type='kd_plugins.UnlabelledImages', data_root=str(folder), pipeline=SKIP),
        )
        loader = Runner.build_dataloader(config)
        return [torch.stack(batch['inputs']) for _ in range(2) for batch in loader]

    shared = epochs(2)
    assert log.read_text().count('3.tif: image file cannot be decoded') == 1
    alone = epochs(0)
    assert len(alone) == 6
    assert all(map(torch.equal, alone, shared))


def test_is_found_by_name_also_below_a_concatenation(folder: Path) -> None:
    part = dict(type='kd_plugins.UnlabelledImages', data_root=str(folder), pipeline=PIPELINE)
    data = DATASETS.build(dict(type='ConcatDataset', datasets=[part, dict(part, data_prefix='a')]))
    assert len(data) == 5 + 3
    assert np.array_equal(data[5]['inputs'].permute(1, 2, 0).numpy(), cv2.imread(str(folder / 'a/1.png')))
