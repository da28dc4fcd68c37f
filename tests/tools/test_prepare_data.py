import hashlib
import importlib.util
import pickle
import shutil
import subprocess
import sys
from itertools import chain, product
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from kd_plugins.checkpoint import read_weights
from kd_plugins.distillation.sources import build_teacher
from kd_plugins.errors import UserError

TOOL = Path(__file__).parents[2] / 'tools' / 'prepare_data.py'
_spec = importlib.util.spec_from_file_location('prepare_data', TOOL)
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)


def refused(*argv: str) -> str:
    with pytest.raises(UserError) as error:
        tool.main(list(argv))
    message = str(error.value)
    assert '\n' not in message
    return message


def write(path: Path, content: str = '') -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def write_voc(folder: Path, split: str, names: list[str]) -> None:
    write(folder / 'ImageSets' / 'Main' / f'{split}.txt', ''.join(f'{name}\n' for name in names))
    for name in names:
        write(folder / 'JPEGImages' / f'{name}.jpg')
        write(folder / 'Annotations' / f'{name}.xml')


def write_tiny_imagenet(root: Path, annotations: str = 'v0.JPEG\tn2\t0\t0\t9\t9\nv1.JPEG\tn1\t0\t0\t9\t9\n') -> None:
    for name in ('n1', 'n2'):
        write(root / 'train' / name / 'images' / f'{name}_0.JPEG', name)
        write(root / 'train' / name / f'{name}_boxes.txt')
    write(root / 'val' / 'val_annotations.txt', annotations)
    for name in ('v0.JPEG', 'v1.JPEG'):
        write(root / 'val' / 'images' / name, name)


def write_market1501(root: Path) -> None:
    for folder, names in (
        ('bounding_box_train', ['0002_c1s1_000451_03', '0002_c2s1_000451_03', '0007_c5s1_000451_03']),
        ('query', ['0003_c1s1_000451_00', '0004_c4s1_000451_00']),
        (
            'bounding_box_test',
            ['-1_c1s3_034201_01', '0000_c6s1_000451_01', '0003_c2s1_000451_01', '0003_c3s1_000451_01'],
        ),
    ):
        (root / folder).mkdir(parents=True)
        for name in names:
            cv2.imwrite(str(root / folder / f'{name}.jpg'), np.zeros((16, 8, 3), np.uint8))


@pytest.mark.parametrize(
    ('name', 'folder', 'files', 'key'),
    [
        ('cifar10', 'cifar-10-batches-py', [*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch'], 'labels'),
        ('cifar100', 'cifar-100-python', ['train', 'test'], 'fine_labels'),
    ],
)
def test_a_cifar_folder_is_read_through(
    name: str, folder: str, files: list[str], key: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / folder).mkdir()
    for file in files:
        entry = {'data': np.zeros((2, 3072), np.uint8), key: [0, 1]}
        (tmp_path / folder / file).write_bytes(pickle.dumps(entry, protocol=2))
    tool.main([name, '--root', str(tmp_path)])
    assert f'{2 * len(files) - 2} training and 2 test images' in capsys.readouterr().out
    (tmp_path / folder / files[-1]).write_bytes(b'broken')
    assert str(tmp_path / folder / files[-1]) in refused(name, '--root', str(tmp_path))


def test_a_voc_folder_is_checked_file_by_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / 'VOCdevkit' / 'VOC2007'
    write_voc(folder, 'trainval', ['a', 'b', 'c'])
    write_voc(folder, 'test', ['d'])
    tool.main(['voc2007', '--root', str(tmp_path)])
    out = capsys.readouterr().out
    assert '3 images in trainval' in out
    assert '1 images in test' in out
    with (folder / 'ImageSets' / 'Main' / 'trainval.txt').open('a') as file:
        file.write('\n \n')
    tool.main(['voc2007', '--root', str(tmp_path)])
    assert '3 images in trainval' in capsys.readouterr().out
    (folder / 'Annotations' / 'd.xml').unlink()
    assert refused('voc2007', '--root', str(tmp_path)).startswith(f'{folder / "Annotations" / "d.xml"}: missing')
    (folder / 'JPEGImages' / 'b.jpg').unlink()
    assert refused('voc2007', '--root', str(tmp_path)).startswith(f'{folder / "JPEGImages" / "b.jpg"}: missing')


def test_voc2012_has_no_public_test_split(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_voc(tmp_path / 'VOCdevkit' / 'VOC2012', 'trainval', ['a'])
    tool.main(['voc2012', '--root', str(tmp_path)])
    assert '1 images in trainval' in capsys.readouterr().out


def test_tiny_imagenets_validation_images_go_to_their_classes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_tiny_imagenet(tmp_path)
    for _ in range(2):  # a second call finds its work done
        tool.main(['tiny-imagenet', '--root', str(tmp_path)])
        assert '2 classes, 2 training and 2 validation images' in capsys.readouterr().out
    assert (tmp_path / 'val' / 'n2' / 'v0.JPEG').read_text() == 'v0.JPEG'
    assert (tmp_path / 'val' / 'n1' / 'v1.JPEG').read_text() == 'v1.JPEG'
    assert not (tmp_path / 'val' / 'images').exists()


def test_mmpretrain_reads_what_tiny_imagenet_becomes(tmp_path: Path) -> None:
    from mmpretrain.datasets import CustomDataset

    write_tiny_imagenet(tmp_path)
    tool.main(['tiny-imagenet', '--root', str(tmp_path)])
    train, val = (CustomDataset(data_root=str(tmp_path), data_prefix=split) for split in ('train', 'val'))
    assert train.metainfo['classes'] == val.metainfo['classes'] == ('n1', 'n2')
    assert {Path(x['img_path']).name: x['gt_label'] for x in val} == {'v1.JPEG': 0, 'v0.JPEG': 1}
    assert {Path(x['img_path']).name: x['gt_label'] for x in train} == {'n1_0.JPEG': 0, 'n2_0.JPEG': 1}


def test_an_interrupted_sorting_goes_on(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path)
    write(tmp_path / 'val' / 'n2' / 'v0.JPEG', 'v0.JPEG')
    (tmp_path / 'val' / 'images' / 'v0.JPEG').unlink()
    tool.main(['tiny-imagenet', '--root', str(tmp_path)])
    assert (tmp_path / 'val' / 'n1' / 'v1.JPEG').is_file()


def test_what_is_wrong_with_tiny_imagenet_is_named(tmp_path: Path) -> None:
    def check(name: str, **kwargs: str) -> tuple[Path, list[str]]:
        root = tmp_path / name
        write_tiny_imagenet(root, **kwargs)
        return root, ['tiny-imagenet', '--root', str(root)]

    root, argv = check('lost')
    (root / 'val' / 'images' / 'v1.JPEG').unlink()
    assert refused(*argv).startswith(f'{root / "val" / "images" / "v1.JPEG"}: missing')
    root, argv = check('unlisted', annotations='v0.JPEG\tn2\n')
    assert refused(*argv).startswith(f'{root / "val" / "images"}: holds files')
    root, argv = check('garbled', annotations='v0.JPEG n2\n')
    assert 'val_annotations.txt, line 1' in refused(*argv)
    root, argv = check('differing', annotations='v0.JPEG\tn2\nv1.JPEG\tn2\n')
    assert 'train/ has 2 classes and val/ 1' in refused(*argv)
    root, argv = check('empty')
    (root / 'train' / 'n1' / 'images' / 'n1_0.JPEG').unlink()
    assert refused(*argv).startswith(f'{root / "train" / "n1"}: expected images')
    root, argv = check('untold')
    (root / 'val/val_annotations.txt').unlink()
    assert refused(*argv).startswith(f'{root / "val/val_annotations.txt"}: missing; complete {root}')
    root, argv = check('untaught')
    shutil.rmtree(root / 'train')
    assert refused(*argv).startswith(f'{root / "train"}: missing; complete {root}')
    assert 'name --root so' in refused('tiny-imagenet', '--root', str(tmp_path / 'elsewhere'))


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, 'TINY_IMAGENET_URL', (tmp_path / 'absent.zip').as_uri())
    root = tmp_path / 'tiny-imagenet-200'
    message = refused('tiny-imagenet', '--root', str(root))
    assert message.startswith(f'{root}: missing, and the download failed')


def test_tiny_imagenet_is_unpacked_from_an_archive_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_imagenet(tmp_path / 'source' / 'tiny-imagenet-200')
    data = tmp_path / 'data'
    archive = Path(shutil.make_archive(str(data / 'tiny-imagenet-200'), 'zip', tmp_path / 'source'))
    monkeypatch.setattr(tool, 'TINY_IMAGENET_MD5', hashlib.md5(archive.read_bytes()).hexdigest())
    tool.main(['tiny-imagenet', '--root', str(data / 'tiny-imagenet-200')])
    assert (data / 'tiny-imagenet-200' / 'val' / 'n2' / 'v0.JPEG').is_file()


def write_stl10(root: Path) -> None:
    folder = root / 'stl10_binary'
    folder.mkdir(parents=True)
    for split, labels in (('train', [1, 10, 3]), ('test', [2, 2])):
        (folder / f'{split}_X.bin').write_bytes(bytes(3 * 96 * 96 * len(labels)))
        (folder / f'{split}_y.bin').write_bytes(bytes(labels))


def test_stl10_is_unpacked_once_from_an_archive_and_read_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from torchvision.datasets.stl10 import STL10

    write_stl10(tmp_path / 'source')
    data = tmp_path / 'data'
    archive = Path(shutil.make_archive(str(data / 'stl10_binary'), 'gztar', tmp_path / 'source'))
    monkeypatch.setattr(STL10, 'url', (tmp_path / 'stl10_binary.tar.gz').as_uri())  # which is not there
    assert 'the download failed' in refused('stl10', '--root', str(data))  # the archive beside it is another one
    assert not (data / 'stl10_binary').exists()
    monkeypatch.setattr(STL10, 'tgz_md5', hashlib.md5(archive.read_bytes()).hexdigest())
    tool.main(['stl10', '--root', str(data)])
    assert f'{data}: 3 training and 2 test images' in capsys.readouterr().out
    archive.unlink()
    tool.main(['stl10', '--root', str(data)])  # finds its work done
    (data / 'stl10_binary' / 'test_y.bin').unlink()
    assert refused('stl10', '--root', str(data)).startswith(f'{data}/stl10_binary/test_y.bin: missing')


def write_dtd(root: Path) -> None:
    names = [f'{name}/{name}_{i}.jpg' for name in ('woven', 'banded', 'dotted') for i in range(3)]
    for name in names:
        write(root / 'images' / name)
    for split in range(1, 11):
        for i, part in enumerate(('train', 'val', 'test')):
            write(root / 'labels' / f'{part}{split}.txt', ''.join(f'{x}\n' for x in names[(i + split) % 3 :: 3]))


def test_the_ten_splits_of_dtd_become_lists_that_mmpretrain_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from mmpretrain.datasets import CustomDataset

    write_dtd(tmp_path / 'source' / 'dtd')
    root = tmp_path / 'data' / 'dtd'
    archive = Path(shutil.make_archive(str(root.parent / 'dtd-r1.0.1'), 'gztar', tmp_path / 'source'))
    monkeypatch.setattr(tool, 'DTD_MD5', hashlib.md5(archive.read_bytes()).hexdigest())
    for _ in range(2):
        tool.main(['dtd', '--root', str(root)])
        assert '3 classes, 10 splits, the last of 6 training and 3 test images' in capsys.readouterr().out
    labels = {'banded': 0, 'dotted': 1, 'woven': 2}
    for split in (1, 2, 10):
        sides = []
        for part in ('trainval', 'test'):
            data = CustomDataset(data_root=str(root), data_prefix='images', ann_file=f'lists/{part}{split}.txt')
            infos = [data.get_data_info(i) for i in range(len(data))]
            assert all(Path(x['img_path']).is_file() for x in infos)
            assert all(labels[Path(x['img_path']).parent.name] == x['gt_label'] for x in infos)
            sides.append({Path(x['img_path']).name for x in infos})
        assert sides[1] == {f'{name}_{(2 + split) % 3}.jpg' for name in labels}
        assert len(sides[0]) == 6
        assert not sides[0] & sides[1]


def test_what_is_wrong_with_dtd_is_named(tmp_path: Path) -> None:
    root = tmp_path / 'dtd'
    argv = ['dtd', '--root', str(root)]
    write_dtd(root)
    (root / 'images' / 'dotted' / 'dotted_1.jpg').unlink()
    assert refused(*argv).startswith(f'{root}/images/dotted/dotted_1.jpg: missing, though {root}/labels/')
    write(root / 'images' / 'dotted' / 'dotted_1.jpg')
    write(root / 'labels' / 'val4.txt', 'woven/woven_0.jpg\n')
    assert 'split 4 has woven/woven_0.jpg both in training and in test' in refused(*argv)
    (root / 'labels' / 'val4.txt').unlink()
    assert refused(*argv).startswith(f'{root}/labels/val4.txt: missing')
    shutil.rmtree(root / 'images')
    assert 'expected a folder for each class' in refused(*argv)
    assert 'name --root so' in refused('dtd', '--root', str(tmp_path / 'elsewhere'))


@pytest.mark.parametrize('line', ['v0.JPEG\t../../../x\n', '../../v0.JPEG\tn1\n', 'v0.JPEG\t/x\n'])
def test_no_picture_is_moved_out_of_tiny_imagenet(tmp_path: Path, line: str) -> None:
    root = tmp_path / 'a' / 'b' / 'tiny'
    write_tiny_imagenet(root, line + 'v1.JPEG\tn1\n')
    write(tmp_path / 'a' / 'v0.JPEG')
    before = sorted(tmp_path.rglob('*'))
    assert 'val_annotations.txt names ' in refused('tiny-imagenet', '--root', str(root))
    assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('name', ['../../secret.jpg', 'dotted/../../../secret.jpg', '/etc/hosts', './dotted/x.jpg'])
def test_no_list_leads_out_of_dtd_or_voc(tmp_path: Path, name: str) -> None:
    write_dtd(tmp_path / 'dtd')
    write(tmp_path / 'secret.jpg')
    write(tmp_path / 'dtd' / 'images' / 'dotted' / 'x.jpg')
    write(tmp_path / 'dtd' / 'labels' / 'val4.txt', f'{name}\n')
    assert f'{tmp_path}/dtd/' in refused('dtd', '--root', str(tmp_path / 'dtd'))
    folder = tmp_path / 'VOCdevkit' / 'VOC2012'
    write_voc(folder, 'trainval', ['a'])
    write(folder / 'ImageSets' / 'Main' / 'trainval.txt', f'../../../{name}')
    assert 'trainval.txt names ' in refused('voc2012', '--root', str(tmp_path))


def test_market1501_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = tmp_path / 'market'
    write_market1501(root)
    tool.main(['market1501', '--root', str(root)])
    assert capsys.readouterr().out.splitlines()[-3:] == [
        f'{root}: train has 3 images of 2 identities from 3 cameras, 0 of them distractors',
        f'{root}: query has 2 images of 2 identities from 2 cameras, 0 of them distractors',
        f'{root}: gallery has 3 images of 1 identities from 3 cameras, 1 of them distractors',
    ]
    shutil.rmtree(root / 'bounding_box_test')
    assert refused('market1501', '--root', str(root)).startswith(f'{root / "bounding_box_test"}: folder is missing')


def test_market1501_is_fetched_once_and_unpacked_under_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_market1501(tmp_path / 'source' / 'Market-1501-v15.09.15')
    packed = Path(shutil.make_archive(str(tmp_path / 'packed'), 'zip', tmp_path / 'source'))
    monkeypatch.setattr(tool, 'MARKET1501_MD5', hashlib.md5(packed.read_bytes()).hexdigest())
    fetched = []

    def fetch(id: str, output: str, **kwargs: object) -> None:
        fetched.append(id)
        shutil.copy(packed, output)

    monkeypatch.setitem(sys.modules, 'gdown', SimpleNamespace(download=fetch))
    data = tmp_path / 'data'
    for name in ('Market-1501-v15.09.15', 'market'):  # the second finds the archive
        tool.main(['market1501', '--root', str(data / name)])
        assert (data / name / 'bounding_box_train' / '0007_c5s1_000451_03.jpg').is_file()
    assert fetched == [tool.MARKET1501_DRIVE_ID]
    assert {path.name for path in data.iterdir()} == {'Market-1501-v15.09.15', 'Market-1501-v15.09.15.zip', 'market'}


def test_market1501_that_cannot_be_fetched_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / 'data' / 'Market-1501-v15.09.15'
    monkeypatch.setitem(sys.modules, 'gdown', None)
    message = refused('market1501', '--root', str(root))
    assert message.startswith(f'{root}: missing, and the download failed')
    assert 'pip install gdown' in message
    assert message.endswith('unpack the official archive there by hand')

    class RetrievalError(Exception):  # as gdown's, which tells its cause in several lines
        pass

    def fail(**kwargs: object) -> None:
        raise RetrievalError('Cannot retrieve\n\n\tthe public link')

    monkeypatch.setitem(sys.modules, 'gdown', SimpleNamespace(download=fail))
    assert 'Cannot retrieve the public link' in refused('market1501', '--root', str(root))
    monkeypatch.setitem(
        sys.modules,
        'gdown',
        SimpleNamespace(download=lambda id, output, **kwargs: write(Path(output), '<html>quota exceeded</html>')),
    )
    assert 'corrupted' in refused('market1501', '--root', str(root))
    assert not root.exists()


def test_the_command_line_ends_with_one_line_and_status_1(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(TOOL), 'tiny-imagenet', '--root', str(tmp_path / 'elsewhere')],
        capture_output=True,
        text=True,
        check=False,
        env={'PYTHONPATH': str(TOOL.parents[1]), 'PATH': ''},
    )
    assert run.returncode == 1
    (line,) = run.stderr.strip().splitlines()
    assert line.startswith(f'error: {tmp_path / "elsewhere"}')
    assert run.stdout == ''


@pytest.mark.parametrize('name', ['drawn', 'market1501'])
def test_a_default_folder_that_cannot_be_made_is_one_line(name, tmp_path, command):
    (tmp_path / 'data').write_text('a file')
    assert command(tmp_path, name, tool='prepare_data') == 1
    (line,) = (tmp_path / 'stderr').read_text().strip().splitlines()
    assert line.startswith('error: data')


def test_unreadable_images_of_a_folder_are_all_named(tmp_path, capsys):
    root = tmp_path / 'photos'
    (root / 'deep').mkdir(parents=True)
    for i in range(4):
        cv2.imwrite(str(root / f'deep/{i}{";a" * (i == 3)}.png'), np.full((8, 8, 3), i, np.uint8))
    tool.main(['images', '--root', str(root)])
    assert capsys.readouterr().out.endswith(f'{root}: 4 images, all readable\n')
    (root / 'deep/1.png').write_text('nothing')
    (root / 'deep/3;a.png').write_bytes((root / 'deep/3;a.png').read_bytes()[:-9])
    assert refused('images', '--root', str(root)).startswith(f'{root}: 2 of 4 images are unreadable, named above')
    assert capsys.readouterr().out.splitlines() == [
        f'{root}/deep/1.png: image file cannot be decoded',
        f'{root}/deep/3;a.png: image file is truncated',
    ]
    assert 'no such folder of images' in refused('images', '--root', str(root / 'none'))


def norms(*names: str) -> list[str]:
    return [f'{name}.{part}' for name in names for part in ('weight', 'bias', 'running_mean', 'running_var')]


def names_of_resnet(blocks: int, projected: tuple[int, ...]) -> list[str]:
    found = ['conv1.weight', *norms('bn1')]
    for stage, block in product((1, 2, 3), range(blocks)):
        at = f'layer{stage}.{block}'
        found += [f'{at}.conv1.weight', *norms(f'{at}.bn1'), f'{at}.conv2.weight', *norms(f'{at}.bn2')]
        if block == 0 and stage in projected:
            found += [f'{at}.downsample.0.weight', *norms(f'{at}.downsample.1')]
    return [*found, 'fc.weight', 'fc.bias']


def names_of_wrn() -> list[str]:
    found = ['conv1.weight']
    for stage, block in product((1, 2, 3), range(6)):
        at = f'block{stage}.layer.{block}'
        found += [*norms(f'{at}.bn1'), f'{at}.conv1.weight', *norms(f'{at}.bn2'), f'{at}.conv2.weight']
        found += [f'{at}.convShortcut.weight'] if block == 0 else []
    return [*found, *norms('bn1'), 'fc.weight', 'fc.bias']


def names_of_vgg() -> list[str]:
    layers = [f'block{block}.{i}' for block in range(5) for i in (0, 1, 3, 4)]
    parts = [[f'{x}.weight', f'{x}.bias'] if x[-1] in '03' else norms(x) for x in layers]
    return [*chain(*parts), 'classifier.weight', 'classifier.bias']


def names_of_resnet50() -> list[str]:
    found = ['conv1.weight', *norms('bn1')]
    for stage, blocks in ((1, 3), (2, 4), (3, 6), (4, 3)):
        for block in range(blocks):
            at = f'layer{stage}.{block}'
            for i in (1, 2, 3):
                found += [f'{at}.conv{i}.weight', *norms(f'{at}.bn{i}')]
            found += [f'{at}.shortcut.0.weight', *norms(f'{at}.shortcut.1')] if block == 0 else []
    return [*found, 'linear.weight', 'linear.bias']


@pytest.mark.parametrize(
    ('folder', 'config', 'names'),
    [
        ('resnet56_vanilla', 'resnet56', names_of_resnet(9, (2, 3))),
        ('resnet32x4_vanilla', 'resnet32x4', names_of_resnet(5, (1, 2, 3))),
        ('wrn_40_2_vanilla', 'wrn-40-2', names_of_wrn()),
        ('vgg13_vanilla', 'vgg13', names_of_vgg()),
        ('ResNet50_vanilla', 'resnet50', names_of_resnet50()),
    ],
)
def test_teachers_of_repdistiller_are_where_the_pairs_look(folder, config, names, tmp_path, monkeypatch, capsys):
    """With the names of its classes, which have their layers in the order of ours."""
    network = build_teacher(str(TOOL.parents[1] / f'configs/cifar100/canonical/{config}.py'), None)
    weights = {
        name: torch.randn_like(x)
        for name, x in network.state_dict().items()
        if not name.endswith('num_batches_tracked')
    }
    file = tmp_path / 'models' / folder / 'ckpt_epoch_240.pth'
    file.parent.mkdir(parents=True)
    theirs = dict(zip(names, weights.values(), strict=True))
    torch.save({'epoch': 240, 'model': theirs, 'accuracy': torch.tensor([72.0]), 'optimizer': {}}, file)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    tool.main(['cifar100-teachers', '--root', 'models'])
    path = f'work_dirs/cifar100/canonical/{config}/student.pth'
    assert capsys.readouterr().out.endswith(f'models/{folder}/ckpt_epoch_240.pth: converted to {path}\n')
    written = read_weights(path)
    assert all(torch.equal(written[name], x) for name, x in weights.items())
    Path(path).write_text('trained')
    tool.main(['cifar100-teachers', '--root', 'models'])
    assert capsys.readouterr().out.startswith(f'{path} is in place already: kept; ')
    assert Path(path).read_text() == 'trained'


def test_a_folder_without_teachers_is_reported(tmp_path):
    message = refused('cifar100-teachers', '--root', str(tmp_path))
    assert message.startswith(f'{tmp_path}: expected a ckpt_epoch_240.pth in any of the folders resnet56_vanilla, ')
    (tmp_path / 'vgg13_vanilla').mkdir()
    torch.save({'model': {'fc.weight': torch.zeros(1)}}, tmp_path / 'vgg13_vanilla/ckpt_epoch_240.pth')
    assert 'does not fit ImageClassifier' in refused('cifar100-teachers', '--root', str(tmp_path))
