"""The whole of an export: a config and a checkpoint in, a checked file and its card out."""

import argparse
import copy
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import init_default_scope
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import interpolate

from kd_plugins.checkpoint import load_exactly, read_checkpoint, weights_of
from kd_plugins.distillation.origins import normalisation_of
from kd_plugins.distillation.sources import (
    build_network,
    build_teacher,
    set_preprocessor,
    source_and_options,
    student_of,
)
from kd_plugins.engine import load_run, scope_of
from kd_plugins.errors import UserError
from kd_plugins.export.card import Card, latency_of, macs_of, parameters_of, table_of
from kd_plugins.export.files import Parity, Runtime, check_target, compare, run_once, write
from kd_plugins.export.images import channel_order, check_pipeline, images_for
from kd_plugins.export.network import Exportable, exportable
from kd_plugins.export.score import check_score, score
from kd_plugins.registry import MODELS, type_name
from kd_plugins.utils.files import plain, written_whole


def export(args: argparse.Namespace) -> None:
    """Export what the options name, and print its card; see ``tools/export.py``."""
    check_target(args.to)
    scored = args.score or args.features is not None
    config = load_run(args.config, args, 'test' if scored else 'export')
    if scored:
        check_score(config, args.features)
    check_pipeline(config)
    init_default_scope(scope_of(config))
    network, checkpoint = load_student(config, args.checkpoint, args.allow_pickle)
    part = exportable(network, args.backbone, args.normalize, args.decode)
    if part.channels == 'BGR' and not normalisation_of(network.data_preprocessor).reversed:
        part.channels = channel_order(config)
    found = images_for(config, network, args.size)
    images = part.pixels(found.images)
    meta = checkpoint.get('meta') if isinstance(checkpoint.get('meta'), Mapping) else {}
    classes = ((meta or {}).get('dataset_meta') or {}).get('classes') or found.classes
    names = dict(config=Path(args.config).name, checkpoint=Path(args.checkpoint).name)
    parity = export_file(part, images, args.to, names, classes)
    print_log(
        f'{args.to}: at batch 1 and 7, of images {found.source}, the largest difference from torch is '
        f"{parity.difference:.1g} of the largest value, at output '{parity.output}'",
        'current',
    )
    cards = [card_of('student', part, images[:1], args.to)]
    if scored:
        cards[0].metrics = plain(score(config, part, Runtime(args.to), checkpoint, args.features))
    cards += teachers_of(config, args, network, found.images)
    print(f'output: {part.meaning}')
    runtime = 'onnxruntime' if args.to.suffix == '.onnx' else 'torch.export'
    Console(width=max(100, Console().width)).print(table_of(cards, runtime))
    threads = torch.get_num_threads()
    print(f'latency: the median of forward passes of one image on this CPU by {threads} thread{"s" * (threads > 1)}')
    print(json.dumps(parity._asdict() | {card.name: asdict(card) for card in cards}))


def load_student(config: Config, path: str, allow_pickle: bool) -> tuple[nn.Module, dict[str, Any]]:
    """Build the network of a config, of one that distils the student alone; return it with its checkpoint.

    Raises:
        UserError: The checkpoint cannot be read, or is of another network.
    """
    model: Any = {'data_preprocessor': config.get('data_preprocessor')} | dict(config.model)
    student = student_of(model)
    if model.get('predict') == 'ensemble' and type_name(model) == 'NativeEnsemble':
        raise UserError(
            "NativeEnsemble: a file holds one branch, and predict='ensemble' scores all of them: export with "
            '--cfg-options model.predict=branch'
        )
    with MODELS.switch_scope_and_registry(scope_of(config)) as registry:
        network: Any = registry.build(ConfigDict(copy.deepcopy(dict(student))))
    checkpoint = read_checkpoint(path, 'cpu', allow_pickle)
    weights = weights_of(checkpoint, path)
    if student is not model and any(name.startswith('student.') for name in weights):
        weights = weights_of(checkpoint, path, 'student')  # of mmengine's own checkpoint of all networks
    load_exactly(network, weights, path)
    return network, checkpoint


def export_file(
    part: Exportable, images: Tensor, path: Path, names: Mapping[str, str], classes: Sequence[str] | None
) -> Parity:
    """Write a file that computes what ``part`` does; leave none where it does not.

    Args:
        part: The network.
        images: Images as it takes them, seven or more.
        path: The file.
        names: More metadata.
        classes: Names of the classes, where they are known.

    Raises:
        UserError: A layer does not export, the file computes something else, or it cannot be written.
    """
    run_once(part, images[:2])
    with written_whole(path) as partial:
        write(part, images[:2], partial, path.suffix, part.metadata(images.shape, classes) | dict(names))
        return compare(part, Runtime(partial, path.suffix), images)


def card_of(name: str, part: Exportable, image: Tensor, path: Path) -> Card:
    """Measure a network and its file with an image (1, C, H, W)."""
    height, width = image.shape[2:]
    return Card(
        name,
        type(part.whole[0]).__name__,
        (height, width),
        parameters_of(part),
        macs_of(part, image),
        path.stat().st_size,
        latency_of(part, image),
        latency_of(Runtime(path), image),
    )


def teachers_of(config: Config, args: argparse.Namespace, student: Any, images: Tensor) -> Iterator[Card]:
    """Yield the cards of a config's teachers, of which neither weights nor libraries need be there.

    A teacher that is exported as a student is, is measured as a file, too, and scored where its weights are there.
    """
    hooks = [hook for hook in config.get('custom_hooks') or [] if type_name(hook) == 'DistillationHook']
    given = next(iter(hooks), config.model if type_name(config.model) == 'Distiller' else {}).get('teacher') or []
    teachers = [given] if isinstance(given, Mapping) else given
    for number, teacher in enumerate(teachers):
        name = 'teacher' if len(teachers) == 1 else f'teacher {number}'
        try:
            yield _card_of_teacher(name, teacher, config, args, student, images)
        except Exception as error:  # of another library or the user's code: the student is exported all the same
            print_log(f'the {name} is not measured: {" ".join(str(error).split())[:300]}', 'current')


def _card_of_teacher(
    name: str, teacher: Mapping[str, Any], config: Config, args: argparse.Namespace, student: Any, images: Tensor
) -> Card:
    source, options = source_and_options(teacher)
    if trained := Path(str(source.get('checkpoint'))).is_file():
        network: Any = build_teacher(**source)
    elif source.get('config') is not None:
        network = build_network(source['config'], source.get('data_preprocessor'))
    else:
        known = {} if source.get('build') else dict(weights=None)  # a function of one's own states no weights
        network = build_teacher(**source | dict(checkpoint=None, revise_keys=()) | known)
    if type(network.data_preprocessor) is BaseDataPreprocessor:  # it takes the student's batch as it is
        set_preprocessor(network, student.data_preprocessor)
    if size := options.get('size'):
        images = interpolate(images, (size, size) if isinstance(size, int) else tuple(size), mode='bilinear')
    try:
        part = exportable(network, args.backbone, args.normalize, args.decode)
    except UserError:  # of another library, or a backbone
        network.eval()
        height, width = images.shape[2:]
        run = network
        return Card(
            name,
            type(network).__name__,
            (height, width),
            parameters_of(network),
            macs_of(run, images[:1]),
            torch_ms=latency_of(run, images[:1]),
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f'teacher{args.to.suffix}')
        images = part.pixels(images)
        export_file(part, images, path, {}, None)
        card = card_of(name, part, images[:1], path)
        if args.score and trained and not size:
            card.metrics = plain(score(config, part, Runtime(path), {}))
    return card
