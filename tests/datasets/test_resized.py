"""Images decoded once: the same pixels, built once, shared, and never out of date."""

import multiprocessing
import os
import pickle
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from tiny import coco_folder, image_folder

from kd_plugins.datasets import LoadImage, ResizedImages, resized
from kd_plugins.errors import UserError
from kd_plugins.registry import DATASETS

LOAD = dict(type='kd_plugins.LoadImage')
PACK = dict(type='mmpretrain.PackInputs')


def _photos(root: Path) -> Path:
    """Write wide, high and small images, at two depths."""
    rng = np.random.default_rng(0)
    for i, size in enumerate([(40, 60), (90, 30), (20, 25), (64, 64), (33, 100)]):
        (root / f'{i % 2}').mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / f'{i % 2}/{i}.png'), rng.integers(0, 256, (*size, 3), np.uint8))
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return _photos(tmp_path / 'photos')


def _resized(photos: Path, edge: int = 30, load: dict = LOAD, **source: object) -> ResizedImages:
    data = dict(type='kd_plugins.UnlabelledImages', data_root=str(photos), pipeline=[load, PACK]) | source
    return ResizedImages(data, edge, str(photos.parent / 'cache'))


def test_images_are_those_of_the_data_set_resized(photos: Path) -> None:
    data = _resized(photos)
    assert len(data) == 5
    for i in range(5):
        info = data.get_data_info(i)
        original = cv2.imread(info['img_path'])
        height, width = original.shape[:2]
        scale = min(1, 30 / min(height, width))
        expected = cv2.resize(original, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
        assert np.array_equal(info['img'], expected if scale < 1 else original)
        assert info['img_shape'] == info['ori_shape'] == expected.shape[:2]
        assert torch.equal(data[i]['inputs'], torch.tensor(info['img']).permute(2, 0, 1))
        assert 'gt_label' not in data[i]['data_samples']
    assert min(data.get_data_info(0)['img'].shape[:2]) == 30


def test_labels_stay(tmp_path: Path) -> None:
    source = dict(
        type='mmpretrain.CustomDataset', data_root=str(image_folder(tmp_path / 'data')), pipeline=[LOAD, PACK]
    )
    data, plain = ResizedImages(source, 8, str(tmp_path / 'cache')), DATASETS.build(source)
    assert data.metainfo['classes'] == ('class0', 'class1', 'class2', 'class3')
    for i in range(24):
        assert data[i]['data_samples'].gt_label == plain[i]['data_samples'].gt_label
        mean = plain[i]['inputs'].float().mean()
        assert data[i]['inputs'].float().mean() == pytest.approx(mean, abs=0.5)  # an area's mean stays


def test_it_can_be_joined_with_others(photos: Path) -> None:
    options = dict(
        edge=30,
        cache=str(photos.parent / 'cache'),
        dataset=dict(type='kd_plugins.UnlabelledImages', data_root=str(photos), pipeline=[LOAD, PACK]),
    )
    both = [dict(options, type='kd_plugins.ResizedImages'), options['dataset']]
    joined = DATASETS.build(dict(type='ConcatDataset', datasets=both))
    assert len(joined) == 10
    assert torch.equal(joined[1]['inputs'], _resized(photos)[1]['inputs'])


def test_nothing_is_decoded_twice(photos: Path) -> None:
    expected = [x['inputs'] for x in _resized(photos)]
    with patch.object(LoadImage, 'transform', side_effect=AssertionError('decoded again')):
        assert all(map(torch.equal, expected, (x['inputs'] for x in _resized(photos))))
        with pytest.raises(AssertionError, match='decoded again'):
            _resized(photos, edge=29)
        with pytest.raises(AssertionError, match='decoded again'):
            _resized(photos, load=dict(LOAD, imdecode_backend='pillow'))
        os.utime(photos / '0/0.png', ns=(0, 0))
        with pytest.raises(AssertionError, match='decoded again'):
            _resized(photos)


def test_a_complete_cache_needs_no_right_to_write(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [x['inputs'] for x in _resized(photos)]

    def denied(path: Path, *args: object, **options: object) -> None:
        raise PermissionError(13, 'Permission denied', str(path))

    for name in ('mkdir', 'touch', 'open'):
        monkeypatch.setattr(Path, name, denied)
    assert all(map(torch.equal, expected, (x['inputs'] for x in _resized(photos))))
    (shapes,) = (photos.parent / 'cache').glob('*.shapes')
    os.truncate(shapes, 4 * 12)
    with pytest.raises(UserError, match='cache: Permission denied; name another folder'):
        _resized(photos)


def test_classes_are_balanced_around_it(tmp_path: Path) -> None:
    root = image_folder(tmp_path / 'data')
    for path in [*(root / 'class1').iterdir()][1:]:
        path.unlink()
    source = dict(type='mmpretrain.CustomDataset', data_root=str(root), pipeline=[LOAD, PACK])
    small = dict(type='kd_plugins.ResizedImages', dataset=source, edge=8, cache=str(tmp_path / 'cache'))
    balanced = DATASETS.build(dict(type='ClassBalancedDataset', oversample_thr=0.3, dataset=small))
    labels = [int(balanced[i]['data_samples'].gt_label) for i in range(len(balanced))]
    assert np.bincount(labels).tolist() == [6, 3, 6, 6]  # ceil(sqrt(0.3 * 19)) = 3 times


@pytest.mark.parametrize('wrapper', ['ClassBalancedDataset', 'ConcatDataset', 'kd_plugins.RepeatedViews'])
def test_a_wrapper_inside_it_is_named(photos: Path, wrapper: str) -> None:
    source = dict(type='mmpretrain.CustomDataset', data_root=str(photos), pipeline=[LOAD, PACK])
    options = dict(ClassBalancedDataset=dict(oversample_thr=0.1), ConcatDataset={}).get(wrapper, dict(views=1))
    inside = dict(datasets=[source]) if wrapper == 'ConcatDataset' else dict(dataset=source)
    name = wrapper.rpartition('.')[2]
    with pytest.raises(UserError, match=f'ResizedImages: {name} wraps .*; put ResizedImages inside it'):
        ResizedImages(dict(type=wrapper, **inside, **options), 30, str(photos.parent / 'cache'))


def test_what_a_killed_process_leaves_is_completed(photos: Path) -> None:
    expected = [x['inputs'] for x in _resized(photos)]
    (pixels,), (shapes,) = ((photos.parent / 'cache').glob(f'*.{name}') for name in ('pixels', 'shapes'))
    whole = pixels.read_bytes(), shapes.read_bytes()
    sizes = [int(np.prod(x.shape)) for x in expected]
    decoded: list[str] = []
    transform = LoadImage.transform

    def count(self: LoadImage, results: dict) -> dict | None:
        decoded.append(results['img_path'])
        return transform(self, results)

    for left_pixels, left_shapes, images in (
        (sum(sizes[:2]), 2 * 12, 3),
        (sum(sizes[:2]) + 50, 2 * 12, 3),  # the third image in part
        (sum(sizes[:3]), 2 * 12 + 5, 3),  # its shape in part
        (sum(sizes[:2]) - 1, 4 * 12, 4),  # shapes ahead of the pixels
        (0, 0, 5),
    ):
        pixels.write_bytes(whole[0][:left_pixels])
        shapes.write_bytes(whole[1][:left_shapes])
        decoded.clear()
        with patch.object(LoadImage, 'transform', count):
            data = _resized(photos)
        assert len(decoded) == images
        assert all(map(torch.equal, expected, (x['inputs'] for x in data)))
        assert (pixels.read_bytes(), shapes.read_bytes()) == whole


def _total(photos: Path) -> int:
    return sum(int(x['inputs'].sum()) for x in _resized(photos))


def test_processes_that_start_together_build_one_file(photos: Path) -> None:
    with multiprocessing.get_context('fork').Pool(3) as pool:
        totals = pool.map(_total, [photos] * 6, chunksize=1)
    assert set(totals) == {_total(photos)}
    assert len(list((photos.parent / 'cache').glob('*.pixels'))) == 1


def test_many_images_are_read_by_several_processes_in_order(tmp_path: Path) -> None:
    for i in range(230):
        (tmp_path / 'many').mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / f'many/{i:03}.png'), np.full((6, 6, 3), i, np.uint8))
    state = torch.get_rng_state()
    data = _resized(tmp_path / 'many', edge=4)
    assert torch.equal(state, torch.get_rng_state())
    assert [int(x['inputs'].unique()) for x in data] == list(range(230))


def test_workers_and_copies_share_the_file(photos: Path) -> None:
    data = _resized(photos)
    expected = [x['inputs'] for x in data]
    assert len(pickle.dumps(data)) < 2**21  # a LoadImage's marks are a mebibyte
    config = dict(batch_size=1, num_workers=2, sampler=dict(type='DefaultSampler', shuffle=False), dataset=data)
    loaded = [batch['inputs'][0] for batch in Runner.build_dataloader(config)]
    assert all(map(torch.equal, expected, loaded))
    assert all(map(torch.equal, expected, (x['inputs'] for x in pickle.loads(pickle.dumps(data)))))


def test_an_unreadable_image_is_named_or_left_out(photos: Path, tmp_path: Path) -> None:
    (photos / '1/1.png').write_text('nothing')
    with pytest.raises(UserError, match=r'1/1\.png: image file cannot be decoded'):
        _resized(photos)
    log = tmp_path / 'log.txt'
    MMLogger.get_instance(str(tmp_path), log_file=str(log))
    data = _resized(photos, load=dict(LOAD, skip_corrupt=True))
    assert '1 of 5 images are unreadable' in log.read_text()
    with pytest.raises(UserError, match=r'1/1\.png: image file cannot be decoded'):  # now that the file is complete
        _resized(photos)
    assert torch.equal(data[3]['inputs'], data[4]['inputs'])  # sorted: 0/0, 0/2, 0/4, 1/1, 1/3
    whole = _resized(photos, load=dict(LOAD, skip_corrupt=True), test_mode=True)
    assert torch.equal(whole[4]['inputs'], data[4]['inputs'])
    with pytest.raises(UserError, match='image 3 cannot be read, and a test set must be whole'):
        _ = whole[3]
    for path in photos.rglob('*.png'):
        path.write_text('nothing')
    with pytest.raises(UserError, match='none of the 5 images can be read'):
        _resized(photos, load=dict(LOAD, skip_corrupt=True))[0]


def test_a_folder_that_cannot_be_written_is_named_and_locks_are_not_needed(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(38, 'Function not implemented')

    monkeypatch.setattr(resized.fcntl, 'flock', no_locks)
    assert len(_resized(photos)) == 5
    with pytest.raises(UserError, match=r'/proc/resized: .*; name another folder for the resized images as cache'):
        ResizedImages(
            dict(type='kd_plugins.UnlabelledImages', data_root=str(photos), pipeline=[LOAD, PACK]), 30, '/proc/resized'
        )


def test_mistakes_end_in_one_line(photos: Path, tmp_path: Path) -> None:
    coco = dict(
        type='mmdet.CocoDataset',
        data_root=f'{coco_folder(tmp_path / "coco")}/',
        ann_file='annotations.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=('person',)),
        pipeline=[LOAD],
    )
    (tmp_path / 'list.txt').write_text('photos/0/0.png\nphotos/none.png\n')
    for build, message in (
        (lambda: _resized(photos, edge=0), r'edge=0; expected the length of the shorter side'),
        (lambda: _resized(photos, pipeline=[PACK]), r'begins with PackInputs; expected kd_plugins\.LoadImage'),
        (lambda: _resized(photos, pipeline=[]), r'is empty; expected'),
        (lambda: _resized(photos, load=dict(LOAD, to_float32=True)), r'without to_float32'),
        (lambda: _resized(photos, load=dict(LOAD, color_type='grayscale')), r'expected uint8 \(H, W, 3\), as color_ty'),
        (lambda: ResizedImages(coco, 8, str(tmp_path / 'cache')), r'CocoDataset have boxes, which would not be res'),
        (lambda: _resized(photos, data_root='', ann_file=str(tmp_path / 'list.txt')), r'none\.png: No such file'),
    ):
        with pytest.raises(UserError, match=message) as error:
            build()
        assert '\n' not in str(error.value)
