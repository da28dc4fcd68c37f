"""The whole of an export: a config and a checkpoint in, a checked file and its card out."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from rich.console import Console
from torch import Tensor, nn

from kd_plugins.checkpoint import load_exactly, read_checkpoint, weights_of
from kd_plugins.distillation.sources import student_of
from kd_plugins.engine import load_run, scope_of
from kd_plugins.export.card import Card, latency_of, macs_of, parameters_of, table_of
from kd_plugins.export.files import Parity, Runtime, check_target, compare, write
from kd_plugins.export.images import images_for
from kd_plugins.export.network import Exportable, exportable
from kd_plugins.registry import MODELS
from kd_plugins.utils.files import written_whole


def export(args: argparse.Namespace) -> None:
    """Export what the options name, and print its card; see ``tools/export.py``."""
    check_target(args.to)
    config = load_run(args.config, args, 'export')
    init_default_scope(scope_of(config))
    network, classes = load_student(config, args.checkpoint, args.allow_pickle)
    part = exportable(network, args.backbone, args.normalize)
    images, source = images_for(config, network, args.size)
    images = part.pixels(images)
    names = dict(config=Path(args.config).name, checkpoint=Path(args.checkpoint).name)
    parity = export_file(part, images, args.to, names, classes)
    print_log(
        f'{args.to}: at batch 1 and 7, of images {source}, the largest difference from torch is '
        f"{parity.difference:.1g} of the largest value, at output '{parity.output}'",
        'current',
    )
    cards = [card_of('student', part, images[:1], args.to)]
    runtime = 'onnxruntime' if args.to.suffix == '.onnx' else 'torch.export'
    print(f'output: {part.meaning}')
    Console(width=max(100, Console().width)).print(table_of(cards, runtime))
    print(f'latency: the median of forward passes of one image on this CPU by {torch.get_num_threads()} threads')
    print(json.dumps(parity._asdict() | {card.name: asdict(card) for card in cards}))


def load_student(config: Config, checkpoint: str, allow_pickle: bool) -> tuple[nn.Module, list[str] | None]:
    """Build the network of a config, of one that distils the student alone, and load its weights.

    Returns:
        The network, and the names of its classes where the checkpoint has them.

    Raises:
        UserError: The checkpoint cannot be read, or is of another network.
    """
    model: Any = {'data_preprocessor': config.get('data_preprocessor')} | dict(config.model)
    student = student_of(model)
    with MODELS.switch_scope_and_registry(scope_of(config)) as registry:
        network: Any = registry.build(Config(dict(student)).to_dict())
    read = read_checkpoint(checkpoint, 'cpu', allow_pickle)
    weights = weights_of(read, checkpoint)
    if student is not model and any(name.startswith('student.') for name in weights):
        weights = weights_of(read, checkpoint, 'student')  # of mmengine's own checkpoint of all networks
    load_exactly(network, weights, checkpoint)
    meta = read.get('meta', {}) if isinstance(read.get('meta'), Mapping) else {}
    return network, (meta.get('dataset_meta') or {}).get('classes')


def export_file(
    part: Exportable, images: Tensor, path: Path, names: Mapping[str, str], classes: list[str] | None
) -> Parity:
    """Write a file that computes what ``part`` does; leave none where it does not.

    Raises:
        UserError: A layer does not export, the file computes something else, or it cannot be written.
    """
    with torch.no_grad():
        part(images[:2])  # names the outputs
    with written_whole(path) as partial:
        write(part, images[:2], partial, path.suffix, part.metadata(images.shape, classes) | dict(names))
        return compare(part, Runtime(partial, path.suffix), images)


def card_of(name: str, part: Exportable, image: Tensor, path: Path) -> Card:
    """Measure a network and its file with an image (1, C, H, W)."""
    height, width = image.shape[2:]
    return Card(
        name,
        type(part.network).__name__,
        (height, width),
        parameters_of(part.network),
        macs_of(part, image),
        path.stat().st_size,
        latency_of(part, image),
        latency_of(Runtime(path), image),
    )
