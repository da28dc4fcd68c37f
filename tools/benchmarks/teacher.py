"""A teacher's forward pass: layouts, precisions, compiled or not, and its features from disk."""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.step import STEP_PARTS, configs_of, stripped, terms_of
from benchmarks.timing import keep, seconds
from kd_plugins.distillation.cache import FeatureCache
from kd_plugins.distillation.recorder import Recorder
from kd_plugins.distillation.sources import build_network
from kd_plugins.utils.memory import keep_freed_memory
from kd_plugins.utils.models import to_channels_last

PASSES = {  # channels-last, bfloat16, inference mode, compiled
    'float32': (False, False, False, False),
    'float32, inference mode': (False, False, True, False),
    'float32, channels-last': (True, False, False, False),
    'bfloat16': (False, True, False, False),
    'bfloat16, channels-last': (True, True, False, False),
    'bfloat16, channels-last, compiled': (True, True, False, True),
}
TAPS = {'logits': ['head.fc'], 'logits and the last maps': ['head.fc', 'backbone']}


def add_options(command: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    command.add_argument(
        '--parts', nargs='+', choices=['cifar', 'imagenet'], default=['cifar'], help='(default: cifar)'
    )
    command.add_argument('--batch-size', type=int, default=128)
    command.add_argument('--compile', action='store_true', help='also compiled, which takes minutes at first')
    command.add_argument('--repeats', type=int, default=5)
    command.set_defaults(measure=teacher)


def forward(config: dict[str, Any], inputs: Tensor, name: str) -> Callable[[], Any]:
    """Return one way to run the teacher."""
    channels_last, half, inference, compiled = PASSES[name]
    network = stripped(build_network(config['config'])).to(inputs.device).eval().requires_grad_(False)
    if channels_last:
        to_channels_last(network)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    if compiled:
        network.compile()
    mode = torch.inference_mode if inference else torch.no_grad

    def run() -> None:
        with mode(), torch.autocast(inputs.device.type, torch.bfloat16, enabled=half):
            network(inputs, mode='tensor')

    return run


@contextmanager
def cached(config: dict[str, Any], inputs: Tensor, taps: list[str]) -> Iterator[Callable[[], Any]]:
    """Give a function that reads the features of a batch from a cache."""
    network = stripped(build_network(config['config'])).to(inputs.device).eval()
    recorder = Recorder(network, taps)
    with torch.no_grad(), recorder.recording() as features, tempfile.TemporaryDirectory() as folder:
        network(inputs, mode='tensor')
        cache = FeatureCache(folder, network, taps)
        cache.put(*cache.keys(inputs, None), features)

        def read() -> Any:
            kind, keys = cache.keys(inputs, None)
            return None if cache.missing(keys) else cache.get(kind, keys, inputs.device)

        assert read() is not None
        yield read


def teacher(args: argparse.Namespace) -> None:
    """Measure the ways to get a teacher's features."""
    device = torch.device(args.device)
    if device.type == 'cpu':
        keep_freed_memory()  # as a run does
    results: dict[str, Any] = {}
    for part in args.parts:
        side = STEP_PARTS[part][1]
        config, *_ = terms_of(next(iter(configs_of(part).values())))
        inputs = torch.randn(args.batch_size, 3, side, side, device=device)
        with ExitStack() as caches:
            runs = {
                name: forward(config, inputs, name) for name, way in PASSES.items() if args.compile or not way[3]
            } | {
                f'from the cache: {name}': caches.enter_context(cached(config, inputs, taps))
                for name, taps in TAPS.items()
            }
            first = {name: seconds(run, device) for name, run in runs.items()}
            times: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(args.repeats):
                for name, run in runs.items():
                    times[name].append(seconds(run, device))
        base = median(times['float32'])
        title = f'{Path(config["config"]).name}, {args.batch_size} images, {device}, {args.threads} threads'
        table = Table('way', 'ms (min–max)', 'times faster', 'first call, s', title=title)
        for name, taken in times.items():
            table.add_row(
                name,
                f'{1e3 * median(taken):.1f} ({1e3 * min(taken):.1f}–{1e3 * max(taken):.1f})',
                f'{base / median(taken):.2f}',
                f'{first[name]:.1f}',
            )
        Console(width=max(120, Console().width)).print(table)
        results[part] = {
            name: dict(seconds=taken, first=first[name], ratio=base / median(taken)) for name, taken in times.items()
        }
    keep(args, dict(parts=results))
