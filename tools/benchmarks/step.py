"""Training steps: the student alone, with the teacher's forward pass beside it, with each method, and with a cache.

Features in memory are the floor of a cache: what the adapters and losses of a method take.
"""

import argparse
import copy
import random
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmpretrain.structures import DataSample
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.losses import ENTRIES
from benchmarks.timing import keep, machine_of, peak_memory, seconds
from kd_plugins.config import load_config
from kd_plugins.distillation.distillation import Distillation
from kd_plugins.distillation.sources import build_network
from kd_plugins.errors import UserError
from kd_plugins.hooks import DistillationHook, WatchHook
from kd_plugins.registry import type_name
from kd_plugins.utils.memory import keep_freed_memory
from kd_plugins.utils.models import to_channels_last

ROOT = Path(__file__).parents[2]
# A pair, each of whose methods is measured, or a single config; and the side of its images.
STEP_PARTS = {
    'cifar': ('configs/cifar10/wrn-16-2_from_wrn-40-2.py', 32),
    'imagenet': ('configs/imagenet/resnet18_from_resnet34.py', 224),
    'voc': ('configs/voc/nst_in_detector.py', 320),
    'pretrain': ('configs/pretrain/resnet18-narrow_from_mobilenet-v2.py', 128),
}


def add_options(command: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    command.add_argument('--parts', nargs='+', choices=STEP_PARTS, default=['cifar'], help='(default: cifar)')
    command.add_argument('--only', nargs='+', metavar='METHOD', default=[], help='names of methods, as kd')
    command.add_argument('--batch-size', type=int, default=128)
    command.add_argument('--amp', action='store_true', help='under bfloat16 autocast')
    command.add_argument('--channels-last', action='store_true')
    command.add_argument('--watch', action='store_true', help='also watched by WatchHook, and with its gradients')
    command.add_argument('--repeats', type=int, default=5)
    command.set_defaults(check=check_names, measure=step)


def check_names(args: argparse.Namespace) -> None:
    """Refuse names of no method."""
    if not args.only:
        return
    known = [name for part in args.parts for name in configs_of(part)]
    if unknown := set(args.only) - {*known}:
        raise UserError(
            f'--only: there is no method {", ".join(sorted(unknown))} in {", ".join(args.parts)}; methods are '
            f'{", ".join(known)}'
        )


def configs_of(part: str) -> dict[str, Config]:
    """Return what is measured of a part, by the name of the method or of the config."""
    path = ROOT / STEP_PARTS[part][0]
    config = load_config(str(path))
    if 'methods' not in config:
        return {path.stem: config}
    found = {}
    for name, terms in config.methods.items():
        found[name] = copy.deepcopy(config)
        found[name].custom_hooks = [dict(config.custom_hooks[0], terms=terms)]
    return found


def terms_of(config: Config) -> tuple[dict[str, Any], Sequence[dict[str, Any]], str]:
    """Return a config's teacher, terms and task."""
    for hook in config.get('custom_hooks') or []:
        if type_name(hook) == 'DistillationHook':
            return dict(hook.teacher, checkpoint=None, cache=None), hook.terms, hook.get('task', 'train')
    raise UserError(f'{config.filename}: has no DistillationHook; measure a config that distils')


def batch_of(config: Config, size: int, side: int, device: torch.device) -> dict[str, Any]:
    """Return noise in place of images, as a data loader gives them, with annotations as of the config's data set."""
    if config.default_scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        data = demo_mm_inputs(size, [(3, side, side)] * size, num_items=[3] * size, num_classes=20)
        samples = [sample.to(device) for sample in data['data_samples']]
    else:
        classes = (config.model.head or dict(num_classes=1))['num_classes']
        samples = [DataSample(metainfo=dict(sample_idx=i)).set_gt_label(i % classes).to(device) for i in range(size)]
    return dict(inputs=torch.randint(256, (size, 3, side, side), dtype=torch.uint8), data_samples=samples)


def stripped(network: nn.Module) -> nn.Module:
    """Remove the initialisation of a network, so that no checkpoint is loaded."""
    for module in network.modules():
        if getattr(module, 'init_cfg', None):
            module.init_cfg = None  # type: ignore[assignment]  # torch declares tensors and modules only
    return network


def steps_of(
    config: Config,
    size: int,
    side: int,
    args: argparse.Namespace,
    cache: str,
) -> dict[str, Callable[[], None]]:
    """Return the steps of a config, over the same networks and the same batch, which each normalises anew.

    With ``args.watch`` watched ones, too.
    """
    device = torch.device(args.device)
    teacher, terms, task = terms_of(config)
    torch.manual_seed(0)
    student: BaseModel = stripped(build_network(config.filename)).to(device)
    if 'config' in teacher:
        network = build_network(teacher['config'], teacher.get('data_preprocessor'))
        teacher['checkpoint'] = f'{cache}/teacher.pth'  # random weights are enough
        torch.save(network.state_dict(), teacher['checkpoint'])
    batch = batch_of(config, size, side, device)
    samples = batch['data_samples']

    def normalised() -> Tensor:
        return student.data_preprocessor(dict(batch), True)['inputs']

    if args.channels_last:
        to_channels_last(student)

    def taught_by(teacher: dict[str, Any]) -> Distillation:
        distillation = Distillation(student, teacher, terms, task).to(device)
        if args.channels_last:
            to_channels_last(distillation)
        distillation.set_num_samples(ENTRIES)
        distillation.dry_run(student, normalised(), samples)
        for each in distillation.teachers:
            each.origins.watch()
        return distillation

    distillation, held, cached = taught_by(teacher), taught_by(teacher), taught_by(dict(teacher, cache=cache))
    features: list[Any] = []

    def kept(inputs: Tensor, samples: Sequence[Any] | None) -> list[Any]:
        features[:] = features or cached.teacher_features(inputs, samples)
        return features

    held.teacher_features = kept  # type: ignore[assignment]  # the floor of any cache
    parameters = [p for module in (student, distillation, held, cached) for p in module.parameters()]
    optimizer = OptimWrapper(torch.optim.SGD(parameters, lr=1e-4, momentum=0.9))
    student.train()

    def step(losses: Callable[[Tensor], dict[str, Any]]) -> Callable[[], None]:
        def run() -> None:
            inputs = normalised()
            with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
                total, _ = student.parse_losses(losses(inputs))
            optimizer.update_params(total)

        return run

    def alone(inputs: Tensor, mode: str = 'loss') -> dict[str, Any]:
        if task != 'off' or mode == 'tensor':
            return student(inputs, samples, mode=mode)
        return {'loss': student(inputs, samples, mode='tensor')[-1].square().mean()}  # it has no loss of its own

    def beside(inputs: Tensor) -> dict[str, Any]:
        distillation.teacher(inputs, samples)
        return alone(inputs)

    def distilled(distillation: Distillation, inputs: Tensor) -> dict[str, Any]:
        return distillation.losses(partial(alone, inputs), inputs, samples)

    def watched(gradients: int) -> Callable[[], None]:
        watching, plain = WatchHook(gradients), step(partial(distilled, distillation))

        def run() -> None:
            watching.before_train(runner)
            watching.before_train_iter(runner, 0)
            plain()
            watching.after_train_iter(runner, 0)
            watching.after_train(runner)

        return run

    hook = DistillationHook(teacher, terms)
    hook.distillation = distillation
    hub = MessageHub('benchmark')
    runner: Any = SimpleNamespace(model=student, hooks=[hook], cfg={}, optim_wrapper=optimizer, message_hub=hub, iter=0)
    return {
        'student': step(alone),
        'with teacher': step(beside),
        'distilled': step(partial(distilled, distillation)),
        'in memory': step(partial(distilled, held)),
        'cached': step(partial(distilled, cached)),
        **({'watched': watched(0), 'gradients': watched(1)} if args.watch else {}),
    }


def costs(run: Callable[[], None], device: torch.device) -> list[str]:
    """Return the three operations on which a step spends most time, with their shares."""
    kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device.type == 'cuda')]
    with profile(activities=kinds) as profiled:
        run()
    key = 'self_device_time_total' if device.type == 'cuda' else 'self_cpu_time_total'
    events = sorted(profiled.key_averages(), key=lambda event: -getattr(event, key))
    total = sum(getattr(event, key) for event in events) or 1  # some virtual machines hide a GPU's counters
    return [f'{event.key} {getattr(event, key) / total:.0%}' for event in islice(events, 3)]


def percents(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """Return how much longer than the former the latter took, in each repetition."""
    return [100 * (b / a - 1) for a, b in zip(before, after, strict=True)]


def ranged(values: Sequence[float]) -> str:
    """Return the median and the range of percentages."""
    return f'{median(values):+.1f} ({min(values):+.1f} to {max(values):+.1f})'


def step(args: argparse.Namespace) -> None:
    """Measure training steps."""
    device = torch.device(args.device)
    if device.type == 'cpu':
        keep_freed_memory()  # as a run does
    machine = machine_of(device, torch.bfloat16 if args.amp else torch.float32)
    results: dict[str, Any] = {}
    for part in args.parts:
        side = STEP_PARTS[part][1]
        table = Table(
            'config',
            'student alone, images/s',
            'with teacher',
            'distilled',
            'features in memory',
            'teacher cached',
            *(['watched', 'with its gradients'] if args.watch else []),
            'cached over alone (over in memory)',
            'distilled over teacher, %',
            'MiB, with teacher',
            'distilled',
            *(['watched over distilled, %', 'with its gradients'] if args.watch else []),
            'times the floor',
            'costs most',
            title=f'{part}: {args.batch_size} images of {side}x{side}, {device}, {args.threads} threads'
            f'{", bfloat16" * args.amp}{", channels-last" * args.channels_last}',
        )
        results[part] = {}
        for method, config in configs_of(part).items():
            if args.only and method not in args.only:
                continue
            with tempfile.TemporaryDirectory() as folder:
                runs = steps_of(config, args.batch_size, side, args, folder)
                times: dict[str, list[float]] = {name: [] for name in runs}
                for repeat in range(args.repeats + 1):
                    for name, run in random.sample(
                        list(runs.items()), len(runs)
                    ):  # so that none always follows the same one
                        taken = seconds(run, device)
                        if repeat:  # the first one warms up, and fills the cache
                            times[name].append(taken)
                most = costs(runs['distilled'], device)
                memory = {name: peak_memory(runs[name], device) for name in ('with teacher', 'distilled')}
                with FlopCounterMode(display=False) as counter:
                    runs['distilled']()
            floor = counter.get_total_flops() / machine.operations
            over = percents(times['with teacher'], times['distilled'])
            watched = {x: percents(times['distilled'], times[x]) for x in ('watched', 'gradients') if x in times}
            result = {name: args.batch_size / median(values) for name, values in times.items()}
            result |= dict(
                seconds=times,
                over_percent=median(over),
                peak_bytes=memory,
                costs=most,
                times_floor=median(times['distilled']) / floor,
                watched_percent={name: median(values) for name, values in watched.items()},
            )
            results[part][method] = result
            keep(
                args,
                dict(
                    batch_size=args.batch_size,
                    amp=args.amp,
                    channels_last=args.channels_last,
                    gigaflops=round(machine.operations / 1e9, 1),
                    parts=results,
                ),
            )

            def ratio(name: str, times: Any = times) -> float:
                return median(a / b for a, b in zip(times[name], times['cached'], strict=True))

            table.add_row(
                method,
                *(f'{result[name]:.1f}' for name in runs),
                f'{ratio("student"):.2f} ({ratio("in memory"):.2f})',
                ranged(over),
                *(f'{x / 2**20:.0f}' for x in memory.values()),
                *map(ranged, watched.values()),
                f'{result["times_floor"]:.1f}',
                ', '.join(most),
            )
        Console(width=max(320 if args.watch else 240, Console().width)).print(table)
