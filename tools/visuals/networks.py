"""What the pictures of networks share: images of a test set, and the features of networks at a tap."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import Tensor

from kd_plugins.config import load_config, without_workers
from kd_plugins.distillation.origins import normalisation_of
from kd_plugins.distillation.recorder import Recorder
from kd_plugins.distillation.sources import build_teacher
from kd_plugins.errors import UserError
from kd_plugins.export.images import channel_order
from kd_plugins.utils.files import check_writable, written_whole

# Okabe and Ito's colours, which colour-blind people can distinguish too.
BLUE, VERMILLION = '#0072B2', '#D55E00'
FORMATS = ('.png', '.pdf', '.svg')
BATCH = 32


class Network(NamedTuple):
    """A network's name, and its features of the images at the tap, (N, ...) in float32."""

    name: str
    features: Tensor


class Images(NamedTuple):
    """Images as their pipeline returns them, RGB (H, W, 3) uint8; their classes, or None; the names of the classes."""

    pixels: list[np.ndarray]
    labels: list[int | None]
    classes: Sequence[str]

    def name(self, label: int) -> str:
        """Return the name of a class, or its number where there are no names."""
        return str(self.classes[label]) if label < len(self.classes) else str(label)


def add_network_options(command: argparse.ArgumentParser, images: int) -> None:
    """Add the options of all pictures of networks."""
    command.add_argument('--teacher', nargs=2, required=True, metavar=('CONFIG', 'CHECKPOINT'))
    command.add_argument(
        '--student',
        nargs='+',
        action='append',
        required=True,
        metavar='CONFIG CHECKPOINT [NAME]',
        help='may be given several times; the images are of the test set of the first one',
    )
    command.add_argument('--tap', required=True, help='name of the module whose output is shown, backbone.stage3')
    command.add_argument('--teacher-tap', help='tap of the teacher, if it is another one')
    command.add_argument('--images', type=int, default=images, help='number of images (default: %(default)s)')
    command.add_argument('--seed', type=int, default=0, help='seed of the draws (default: %(default)s)')
    command.add_argument(
        '--out', type=Path, required=True, metavar='FILE', help='file of the picture, .png .pdf or .svg'
    )
    command.add_argument('--allow-pickle', action='store_true', help='run the code in pickled checkpoints you trust')


def check_out(out: Path) -> None:
    """Check, before anything is drawn, that a picture of this name can be made."""
    if out.suffix not in FORMATS:
        raise UserError(f'--out {out}: expected a file ending in {", ".join(FORMATS)}')
    check_writable('--out', out)


def check_options(args: argparse.Namespace) -> None:
    """Check the options before any network is built, and give every student a name."""
    check_out(args.out)
    if args.images < 2:
        raise UserError(f'--images: expected at least 2, got {args.images}')
    if args.seed < 0:
        raise UserError(f'--seed: expected at least 0, got {args.seed}')
    for student in args.student:
        if len(student) not in (2, 3):
            raise UserError(f'--student {" ".join(student)}: expected a config, a checkpoint and, optionally, a name')
        student.extend([Path(student[0]).stem] * (3 - len(student)))
    names = [name for *_, name in args.student]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two students are named '{name}': give each its own name, as the third value of --student")


def test_set(path: str) -> Any:
    """Return the data loader of a config's test set."""
    config = load_config(path)
    if config.get('test_dataloader') is None:
        raise UserError(f'{path} has no test_dataloader, from which the images are taken: give a whole config')
    init_default_scope(config.get('default_scope', 'mmpretrain'))
    return Runner.build_dataloader(without_workers(config.test_dataloader), seed=0)


def labels_of(dataset: Any) -> np.ndarray:
    """Return the class of every image of a data set."""
    try:
        if hasattr(dataset, 'get_data_info'):
            return np.array([int(dataset.get_data_info(i)['gt_label']) for i in range(len(dataset))])
        return np.array([int(dataset[i]['data_samples'][0].gt_label) for i in range(len(dataset))])
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f'{type(dataset).__name__}: its images have no single class each, by which this picture sorts '
            'them: give a config of classification'
        ) from None


def draw_rows(dataset: Any, count: int, seed: int) -> np.ndarray:
    """Return the rows of ``count`` images drawn at random, in their order."""
    if count > len(dataset):
        raise UserError(f'--images: expected at most the {len(dataset)} images of the test set, got {count}')
    return np.sort(np.random.default_rng(seed).permutation(len(dataset))[:count])


def load_network(config: str, checkpoint: str, allow_pickle: bool) -> torch.nn.Module:
    """Build a network in evaluation mode from its config, a path or ``package::path``, and its checkpoint."""
    if '::' not in config:
        load_config(config)  # raises where it is wrong
    network = build_teacher(config, checkpoint, allow_pickle=allow_pickle).requires_grad_(False)
    network.eval()  # of some networks it returns None
    return network.to('cuda' if torch.cuda.is_available() else 'cpu')


@torch.no_grad()
def features_at(network: torch.nn.Module, tap: str, batches: Sequence[dict[str, Any]]) -> Tensor:
    """Return the features of all batches at a tap, each batch through the network's own preprocessor.

    Raises:
        UserError: There is no such tap; its output is not one tensor, or not of one size for all images.
    """
    recorder, preprocess = Recorder(network, [tap]), network.get_submodule('data_preprocessor')
    found = []
    for number, batch in enumerate(batches):
        # The first pass finds out whether the next layer overwrites the output.
        for recording in (recorder.probing, recorder.recording)[number > 0 :]:
            with recording() as features:
                network(**preprocess(batch, False), mode='tensor')
        if len(features[tap]) != 1:
            raise UserError(
                f"the module '{tap}' returns {len(features[tap])} tensors in a forward pass, expected "
                'one: tap another module'
            )
        found.append(features[tap][0].float().cpu())
    sizes = {tuple(x.shape[1:]) for x in found}
    if len(sizes) > 1:
        raise UserError(
            f"the module '{tap}' returns features of different sizes ({sorted(sizes)}): let the test "
            'pipeline make all images one size'
        )
    return torch.cat(found)


def images_and_features(
    args: argparse.Namespace, loader: Any, rows: Iterable[int]
) -> tuple[Images, Network, list[Network]]:
    """Return the images of some rows, and the features of the teacher and of the students at their taps."""
    items = [loader.dataset[int(i)] for i in rows]
    batches = [loader.collate_fn(items[start : start + BATCH]) for start in range(0, len(items), BATCH)]
    networks, reverse = [], False
    for number, (path, checkpoint, name) in enumerate([(*args.teacher, 'teacher'), *args.student]):
        network = load_network(path, checkpoint, args.allow_pickle)
        tap = args.tap if number else args.teacher_tap or args.tap
        networks.append(Network(name, features_at(network, tap, batches)))
        if number == 1:  # the network that the pipeline belongs to
            found = normalisation_of(network.data_preprocessor)
            reverse = found.reversed or not (found.sees_rgb or channel_order(load_config(path)) == 'RGB')
    pixels, labels = [], []
    for batch in batches:
        for image, sample in zip(batch['inputs'], batch['data_samples'], strict=True):
            image = image.permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
            pixels.append(np.ascontiguousarray(image[..., ::-1] if reverse else image))
            label = getattr(sample, 'gt_label', None)
            labels.append(int(label) if label is not None and label.numel() == 1 else None)
    classes = (getattr(loader.dataset, 'metainfo', None) or {}).get('classes') or ()
    return Images(pixels, labels, classes), networks[0], networks[1:]


def tap_names(args: argparse.Namespace) -> str:
    """Return the names of the taps, for a title."""
    return args.tap if args.teacher_tap in (None, args.tap) else f'{args.tap} (teacher: {args.teacher_tap})'


def cut(text: str, length: int) -> str:
    """Return a text of at most ``length`` characters."""
    return text if len(text) <= length else f'{text[: length - 1]}…'


def check_maps(networks: Sequence[Network]) -> None:
    """Check that all features are maps."""
    for network in networks:
        if network.features.ndim != 4:
            raise UserError(
                f'{network.name}: expected feature maps (N, C, H, W), got {tuple(network.features.shape)}; '
                'tap a layer that yields maps'
            )


def save(figure: Figure, out: Path, summary: str) -> None:
    """Write a picture whole, and print what it shows."""
    # Without a date, equal pictures are equal bytes.
    metadata = {'.pdf': dict(CreationDate=None), '.svg': dict(Date=None)}.get(out.suffix)
    with written_whole(out) as partial:
        figure.savefig(partial, format=out.suffix.removeprefix('.'), metadata=metadata)
    print(f'{out}: {summary}')
