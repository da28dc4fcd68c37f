"""Fetch or draw a data set into the layout that the configs read, or check one that is there; convert teachers.

    python tools/prepare_data.py cifar10 --root data/cifar10

What is already in place is checked and kept; only what is missing is downloaded.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from kd_plugins.data_files import fetch, inside, is_image, unpack
from kd_plugins.errors import UserError, one_line_errors, user_named

TINY_IMAGENET_URL = 'http://cs231n.stanford.edu/tiny-imagenet-200.zip'
TINY_IMAGENET_MD5 = '90528d7ca1a48142e341f4ef8d21d0de'
DTD_URL = 'https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz'
DTD_MD5 = 'fff73e5086ae6bdbea199a49dfb8a4c1'
DTD_SPLITS = range(1, 11)
MARKET1501_NAME = 'Market-1501-v15.09.15'
MARKET1501_DRIVE_ID = '0B8-rUzbwVRk0c054eEozWG9COHM'
MARKET1501_MD5 = '65005ab7d12ec1c44de4eeafe813e68a'
# RepDistiller's teachers, and how its names of weights become ours. mdistiller's files are the same.
_RESNET = [(r'^conv1', 'backbone.stem.0'), (r'^bn1', 'backbone.stem.1'), ('^layer', 'backbone.stage')]
_RESNET += [(r'\.bn', '.norm'), ('downsample', 'shortcut'), ('^fc', 'head.fc')]
_WRN = [('^conv1', 'backbone.stem'), ('^bn1', 'backbone.norm'), (r'^block(\d)\.layer', r'backbone.stage\1')]
_WRN += [(r'\.bn', '.norm'), ('convShortcut', 'shortcut'), ('^fc', 'head.fc')]
_VGG = [('^block0', 'backbone.stem'), ('^block', 'backbone.stage'), ('^classifier', 'head.fc')]
_RESNET50 = [('^(?=conv1|bn1|layer)', 'backbone.'), ('shortcut', 'downsample'), ('^linear', 'head.fc')]
TEACHERS = {
    'resnet56_vanilla': ('resnet56', _RESNET),
    'resnet110_vanilla': ('resnet110', _RESNET),
    'resnet32x4_vanilla': ('resnet32x4', _RESNET),
    'wrn_40_2_vanilla': ('wrn-40-2', _WRN),
    'vgg13_vanilla': ('vgg13', _VGG),
    'ResNet50_vanilla': ('resnet50', _RESNET50),
}


def prepare_cifar(args: argparse.Namespace) -> None:
    """Download CIFAR-10 or CIFAR-100 where it is missing, and read every file of it."""
    from kd_plugins.datasets import cifar

    dataset = {'cifar10': cifar.CIFAR10, 'cifar100': cifar.CIFAR100}[args.name]
    sizes = {split: len(dataset(data_root=str(args.root), split=split)) for split in ('train', 'test')}
    print(f'{args.root}: {sizes["train"]} training and {sizes["test"]} test images')


def prepare_voc(args: argparse.Namespace) -> None:
    """Download the trainval and, for 2007, the test archive where the split is missing; check the files of each."""
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    year = args.name.removeprefix('voc')
    folder = args.root / 'VOCdevkit' / f'VOC{year}'
    for split in ('trainval', 'test') if year == '2007' else ('trainval',):
        listed = folder / 'ImageSets' / 'Main' / f'{split}.txt'
        if not listed.is_file():
            official = DATASET_YEAR_DICT[f'{year}-test' if split == 'test' else year]
            download(folder, official['url'], args.root, official['md5'], official['filename'])
        names = [*filter(None, map(str.strip, listed.read_text().splitlines()))]
        images = folder / 'JPEGImages'
        found = {str(path.relative_to(images).with_suffix('')) for path in images.rglob('*') if is_image(path)}
        for name in names:
            annotation = folder / 'Annotations' / f'{inside(name, listed)}.xml'
            if name not in found or not annotation.is_file():
                missing = annotation if name in found else images / f'{name}.jpg'
                raise UserError(f'{missing}: missing, though {listed} lists it; {again(folder)}')
        print(f'{folder}: {len(names)} images in {split}')


def prepare_tiny_imagenet(args: argparse.Namespace) -> None:
    """Download Tiny-ImageNet where it is missing, and sort its validation images into a folder a class."""
    if not args.root.is_dir():
        if args.root.name != 'tiny-imagenet-200':
            raise UserError(f'{args.root}: the archive unpacks to tiny-imagenet-200; name --root so')
        download(args.root, TINY_IMAGENET_URL, args.root.parent, TINY_IMAGENET_MD5)
    sort_validation(args.root / 'val')
    counts = {}
    for split in ('train', 'val'):
        if not (args.root / split).is_dir():
            raise UserError(f'{args.root / split}: missing; {again(args.root)}')
        folders = sorted(path for path in (args.root / split).iterdir() if path.is_dir())
        counts[split] = {path.name: sum(map(is_image, path.rglob('*'))) for path in folders}
        empty = [name for name, count in counts[split].items() if not count]
        if empty or not folders:
            raise UserError(
                f'{args.root / split / "".join(empty[:1])}: expected images, found none; {again(args.root)}'
            )
    train, val = counts.values()
    if train.keys() != val.keys():
        raise UserError(
            f'{args.root}: train/ has {len(train)} classes and val/ {len(val)}, which differ; {again(args.root)}'
        )
    print(
        f'{args.root}: {len(train)} classes, {sum(train.values())} training and {sum(val.values())} validation images'
    )


def sort_validation(folder: Path) -> None:
    """Move ``images/<file>`` to ``<class>/<file>`` by ``val_annotations.txt``; go on where this was interrupted."""
    images = folder / 'images'
    if not images.is_dir():
        return
    annotations = folder / 'val_annotations.txt'
    if not annotations.is_file():
        raise UserError(f'{annotations}: missing; {again(folder.parent)}')
    for number, line in enumerate(annotations.read_text().splitlines(), 1):
        fields = line.split('\t')
        if len(fields) < 2:
            raise UserError(
                f"{annotations}, line {number}: expected a file and its class with a tab between, got '{line}'"
            )
        name, label = (inside(field, annotations) for field in fields[:2])
        source, target = images / name, folder / label / name
        if source.is_file():
            target.parent.mkdir(exist_ok=True)
            source.rename(target)
        elif not target.is_file():
            raise UserError(f'{source}: missing, though {annotations} lists it')
    try:
        images.rmdir()
    except OSError:
        raise UserError(f'{images}: holds files that {annotations} does not list; move them away') from None


def prepare_stl10(args: argparse.Namespace) -> None:
    """Download STL-10 where it is missing, and read its training and test files."""
    from torchvision.datasets.stl10 import STL10 as OFFICIAL

    from kd_plugins.datasets.stl10 import STL10

    folder = args.root / OFFICIAL.base_folder
    if not folder.is_dir():
        download(folder, OFFICIAL.url, args.root, OFFICIAL.tgz_md5)
    sizes = {split: len(STL10(str(args.root), split)) for split in ('train', 'test')}
    print(f'{args.root}: {sizes["train"]} training and {sizes["test"]} test images')


def prepare_dtd(args: argparse.Namespace) -> None:
    """Download Describable Textures where it is missing, and write the lists of its ten splits."""
    if not args.root.is_dir():
        if args.root.name != 'dtd':
            raise UserError(f'{args.root}: the archive unpacks to dtd; name --root so')
        download(args.root, DTD_URL, args.root.parent, DTD_MD5)
    images = args.root / 'images'
    classes = sorted(path.name for path in images.iterdir() if path.is_dir()) if images.is_dir() else []
    if not classes:
        raise UserError(f'{images}: expected a folder for each class, found none; {again(args.root)}')
    target = args.root / 'lists'
    target.mkdir(exist_ok=True)
    for split in DTD_SPLITS:
        parts = {}
        for part in ('train', 'val', 'test'):
            listed = args.root / 'labels' / f'{part}{split}.txt'
            if not listed.is_file():
                raise UserError(f'{listed}: missing; {again(args.root)}')
            parts[part] = listed.read_text().split()
            for name in parts[part]:
                if inside(name, listed).partition('/')[0] not in classes or not (images / name).is_file():
                    raise UserError(f'{images / name}: missing, though {listed} lists it; {again(args.root)}')
        parts['trainval'] = parts.pop('train') + parts.pop('val')
        if both := sorted({*parts['trainval']} & {*parts['test']}):
            raise UserError(
                f'{args.root / "labels"}: split {split} has {both[0]} both in training and in test; {again(args.root)}'
            )
        for part, names in parts.items():
            lines = [f'{name} {classes.index(name.partition("/")[0])}\n' for name in names]
            (target / f'{part}{split}.txt').write_text(''.join(lines))
    print(
        f'{args.root}: {len(classes)} classes, {len(DTD_SPLITS)} splits, the last of {len(parts["trainval"])} '
        f'training and {len(parts["test"])} test images; lists in {target}'
    )


def prepare_market1501(args: argparse.Namespace) -> None:
    """Download Market-1501 where it is missing; read the names of all its images and count."""
    from kd_plugins.datasets.market1501 import Market1501

    if not args.root.is_dir():
        fetch_market1501(args.root)
    for split in ('train', 'query', 'gallery'):
        data = Market1501(str(args.root), split)
        infos = [data.get_data_info(i) for i in range(len(data))]
        identities = [info['identity'] for info in infos]
        print(
            f'{args.root}: {split} has {len(infos)} images of {len(set(identities) - {0})} identities from '
            f'{len({info["camera"] for info in infos})} cameras, {identities.count(0)} of them distractors'
        )


def fetch_market1501(root: Path) -> None:
    """Download the archive beside ``root``, unless it lies there, and unpack it; ``root`` appears once it is whole."""
    from torchvision.datasets.utils import check_integrity, download_file_from_google_drive

    root.parent.mkdir(parents=True, exist_ok=True)
    archive = root.parent / f'{MARKET1501_NAME}.zip'
    if not check_integrity(archive, MARKET1501_MD5):
        try:
            download_file_from_google_drive(MARKET1501_DRIVE_ID, root.parent, archive.name, MARKET1501_MD5)
        except Exception as error:  # gdown's own errors have no narrower base
            raise not_downloaded(root, error) from error
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        unpack(archive, folder)
        (Path(folder) / MARKET1501_NAME).rename(root)


def download(folder: Path, *archive: Any) -> None:
    """Fetch an archive that holds a folder, see :func:`kd_plugins.data_files.fetch`."""
    try:
        fetch(*archive)
    except (OSError, RuntimeError) as error:
        raise not_downloaded(folder, error) from error


def again(folder: Path) -> str:
    """Return the remedy for an incomplete data set."""
    return f'complete {folder}, or move it away and run this again'


def not_downloaded(folder: Path, error: Exception) -> UserError:
    """Return the error of a failed download."""
    return UserError(
        f'{folder}: missing, and the download failed ({" ".join(str(error).split())}); unpack the '
        'official archive there by hand'
    )


def prepare_images(args: argparse.Namespace) -> None:
    """Read every image of a folder, at any depth, and name those that are unreadable."""
    from rich.console import Console
    from rich.progress import track

    from kd_plugins.datasets import UnlabelledImages

    data = UnlabelledImages(str(args.root), pipeline=[dict(type='kd_plugins.LoadImage')])
    unreadable = 0
    for index in track(range(len(data)), 'reading', console=Console(stderr=True), transient=True):
        try:
            data[index]
        except UserError as error:
            print(str(error).rpartition('; ')[0])
            unreadable += 1
    if unreadable:
        raise UserError(
            f'{args.root}: {unreadable} of {len(data)} images are unreadable, named above: replace them, or train '
            'without them (--skip-corrupt)'
        )
    print(f'{args.root}: {len(data)} images, all readable')


def prepare_cifar100_teachers(args: argparse.Namespace) -> None:
    """Convert the teachers of RepDistiller or mdistiller to where the configs of cifar100/canonical look for theirs."""
    from kd_plugins.checkpoint import save_weights
    from kd_plugins.config import located, trained
    from kd_plugins.distillation.sources import build_teacher

    files = {name: args.root / name / 'ckpt_epoch_240.pth' for name in TEACHERS}
    if not any(file.is_file() for file in files.values()):
        raise UserError(
            f'{args.root}: expected a ckpt_epoch_240.pth in any of the folders {", ".join(TEACHERS)}; fetch them by '
            'fetch_pretrained_teachers.sh of github.com/HobbitLong/RepDistiller, or unpack the cifar_teachers.tar of '
            "github.com/megvii-research/mdistiller's releases, and give that folder by --root"
        )
    for name, file in files.items():
        if not file.is_file():
            continue
        network, revise_keys = TEACHERS[name]
        teacher = trained(f'configs/cifar100/canonical/{network}.py')
        if Path(teacher['checkpoint']).exists():
            print(f'{teacher["checkpoint"]} is in place already: kept; to convert {file}, remove it')
            continue
        model = build_teacher(located(teacher['config'], ''), file, revise_keys=revise_keys)
        save_weights(model.state_dict(), teacher['checkpoint'], {})
        print(f'{file}: converted to {teacher["checkpoint"]}')


def prepare_drawn(args: argparse.Namespace) -> None:
    """Draw the small detection and classification sets of the configs voc_mini, which need no download."""
    from kd_plugins.datasets.drawing import draw_classification, draw_voc

    for draw, name in ((draw_voc, 'VOCdevkit'), (draw_classification, 'classification')):
        print(f'{draw(args.root / name)}: drawn')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='name', required=True, metavar='DATASET')
    for name, prepare, root in (
        ('cifar10', prepare_cifar, 'data/cifar10'),
        ('cifar100', prepare_cifar, 'data/cifar100'),
        ('voc2007', prepare_voc, 'data'),
        ('voc2012', prepare_voc, 'data'),
        ('tiny-imagenet', prepare_tiny_imagenet, 'data/tiny-imagenet-200'),
        ('stl10', prepare_stl10, 'data/stl10'),
        ('dtd', prepare_dtd, 'data/dtd'),
        ('market1501', prepare_market1501, f'data/{MARKET1501_NAME}'),
        ('images', prepare_images, 'data/unlabelled'),
        ('drawn', prepare_drawn, 'data/drawn'),
        ('cifar100-teachers', prepare_cifar100_teachers, 'save/models'),
    ):
        command = commands.add_parser(name, help=prepare.__doc__, description=prepare.__doc__)
        command.add_argument('--root', type=Path, default=Path(root), help='folder (default: %(default)s)')
        command.set_defaults(prepare=prepare)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    user_named([str(args.root)])  # the default too
    args.prepare(args)


if __name__ == '__main__':
    with one_line_errors():
        main()
