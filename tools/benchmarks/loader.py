"""Loading alone: a config's training images, and CIFAR-sized ones, image by image and a whole batch at once."""

import argparse
import pickle
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from rich.console import Console
from rich.table import Table

from benchmarks.timing import keep, machine_of, peak_memory, seconds
from kd_plugins.config import load_config, without_workers
from kd_plugins.datasets import ResizedImages
from kd_plugins.errors import UserError
from kd_plugins.registry import DATASETS, type_name

CONFIGS = Path(__file__).parents[2] / 'configs/_base_/datasets'
BATCHES = 10  # of one measurement
IMAGES = 300  # of a config's


def add_options(command: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    command.add_argument('config', nargs='?', help='measure the training data of this config')
    command.add_argument(
        '--images', type=int, default=50_000, help="images in the drawn set; of a config's, at most 300"
    )
    command.add_argument('--edge', type=int, default=160, help="shorter side of a config's resized images")
    command.add_argument('--repeats', type=int, default=5)
    command.set_defaults(measure=loader)


def draw_cifar(root: Path, images: int) -> None:
    """Write noise in CIFAR-10's layout: five training files and a test file."""
    rng = np.random.default_rng(0)
    folder = root / 'cifar-10-batches-py'
    folder.mkdir()
    for name in [*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']:
        data = rng.integers(0, 256, (images // 5, 3072), np.uint8)
        content = {'data': data, 'labels': rng.integers(0, 10, images // 5).tolist()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    meta = {'label_names': [f'class{i}' for i in range(10)]}
    (folder / 'batches.meta').write_bytes(pickle.dumps(meta, protocol=2))


def endless(config: Config, root: Path, device: str) -> Callable[[], None]:
    """Return a function that loads some batches by a config's training loader, in this process, ready for a network."""
    loader = config.train_dataloader
    inner = loader.dataset.get('dataset', loader.dataset)
    inner.data_root = str(root)
    batched = inner is not loader.dataset
    if batched:
        loader.dataset.device = device
    source = Runner.build_dataloader(without_workers(loader), seed=0)
    if batched:
        source.dataset.set_epoch(0, 0)
    preprocessor = MODELS.build(dict(config.data_preprocessor, type='mmpretrain.ClsDataPreprocessor')).to(device)

    def batches() -> Iterator[Any]:
        while True:
            yield from source

    stream = batches()

    def run() -> None:
        for batch in islice(stream, BATCHES):
            preprocessor(batch, True)

    return run


def loader(args: argparse.Namespace) -> None:
    """Measure the number of images a second, of a config's data or of drawn ones."""
    if args.config:
        loader_of(args)
        return
    device = torch.device(args.device)
    # An image's bytes are read once, and written as float32.
    floor = BATCHES * 128 * 3 * 32 * 32 * (1 + 4) / machine_of(device).bandwidth
    DefaultScope.get_instance('loader', scope_name='mmpretrain')
    with tempfile.TemporaryDirectory() as folder:
        draw_cifar(Path(folder), args.images)
        runs = {}
        for name, file in (('stock', 'cifar10.py'), ('batched', 'cifar10_batched.py')):
            runs[name] = endless(Config.fromfile(CONFIGS / file), Path(folder), args.device)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for repeat in range(args.repeats + 1):
            for name, run in runs.items():
                taken = seconds(run, device)
                if repeat:  # the first one warms up
                    times[name].append(taken)
        memory = {name: peak_memory(run, device) for name, run in runs.items()}
    results = {}
    table = Table(
        'loader',
        'images/s (min–max)',
        'times the stock one',
        'MiB',
        'times the floor',
        title=f'batches of 128, {device}, {args.threads} threads',
    )
    for name, values in times.items():
        rates = [BATCHES * 128 / value for value in values]
        ratio = median(a / b for a, b in zip(times['stock'], values, strict=True))
        results[name] = dict(
            images_per_second=rates, ratio=ratio, peak_bytes=memory[name], times_floor=median(values) / floor
        )
        table.add_row(
            name,
            f'{median(rates):,.0f} ({min(rates):,.0f}–{max(rates):,.0f})',
            f'{ratio:.1f}',
            f'{memory[name] / 2**20:.1f}',
            f'{median(values) / floor:.1f}',
        )
    Console(width=max(100, Console().width)).print(table)
    keep(args, dict(loaders=results))


def loader_of(args: argparse.Namespace) -> None:
    """Measure a config's training data in this process: reading, all steps, and all steps on resized images."""
    config = load_config(args.config)
    DefaultScope.get_instance('loader_of', scope_name=config.get('default_scope') or 'mmpretrain')
    source = config.train_dataloader.dataset
    if type_name(source) == 'RepeatedViews':
        source = source.dataset
    plain = DATASETS.build(source)
    if isinstance(plain, ResizedImages):
        raise UserError(f'{args.config}: its training data are ResizedImages already; name the config without them')
    chosen = np.random.default_rng(0).permutation(len(plain))[: min(args.images, IMAGES)].tolist()
    steps = getattr(getattr(plain, 'pipeline', None), 'transforms', None)
    if not steps:
        raise UserError(f'{args.config}: {type(plain).__name__} has no pipeline whose steps could be measured')
    with tempfile.TemporaryDirectory() as folder:
        some = dict(source, indices=chosen)
        resized = ResizedImages(some, args.edge, folder)
        runs = {
            'first step': lambda: [steps[0](plain.get_data_info(i)) for i in chosen],
            'all steps': lambda: [plain[i] for i in chosen],
            f'all steps, resized to {args.edge}': lambda: [resized[i] for i in range(len(chosen))],
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for repeat in range(args.repeats + 1):
            for name, run in runs.items():
                taken = seconds(run, torch.device('cpu'))
                if repeat:  # the first one warms up
                    times[name].append(taken)
    table = Table(
        args.config, 'images/s (min–max)', 'times all steps', title=f'{len(chosen)} of {len(plain)} images, one process'
    )
    results = {}
    for name, values in times.items():
        rates = [len(chosen) / value for value in values]
        ratio = median(a / b for a, b in zip(times['all steps'], values, strict=True))
        results[name] = dict(images_per_second=rates, ratio=ratio)
        table.add_row(name, f'{median(rates):,.0f} ({min(rates):,.0f}–{max(rates):,.0f})', f'{ratio:.1f}')
    Console(width=max(100, Console().width)).print(table)
    keep(args, dict(loaders=results))
