"""A race of whole trainings: one pair, data, batch and schedule by a plain loop, by torchdistill, and by this package.

Each contestant trains in a process of its own. What the plain loop and torchdistill share is what a user of PyTorch
writes: images through torchvision's transforms in a DataLoader, SGD, one schedule. torchdistill's SP (1.1.3 to 1.1.5)
is another loss: it divides the rows of similarities by the sum of their absolute values, not by their length.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.reid import resident
from benchmarks.timing import keep
from kd_plugins.checkpoint import load_weights
from kd_plugins.config import load_config, task_weight_of, terms_of
from kd_plugins.datasets import CIFAR10
from kd_plugins.distillation.sources import build_network
from kd_plugins.engine import prepare_run
from kd_plugins.errors import UserError

TOOL = Path(__file__).parents[1] / 'benchmark.py'
ROOT = TOOL.parents[1]
CONFIG = 'configs/cifar10_quick/student_from_teacher.py'
BATCHED = 'configs/_base_/datasets/cifar10_batched.py'
METHODS = ('kd', 'sp')
CONTESTANTS = {
    'plain': 'plain loop, literal loss',
    'torchdistill': 'torchdistill',
    'hook': 'DistillationHook',
    'fast': 'the same, batched images, cache, bfloat16, channels-last',
    'compiled': 'the same, compile=True',
}
USUAL = [name for name in CONTESTANTS if name != 'compiled']  # that one takes minutes to compile


def add_options(command: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    command.add_argument(
        '--contestants', nargs='+', choices=CONTESTANTS, help='(default: all that are installed, but for compiled)'
    )
    _add_training_options(command)
    command.set_defaults(measure=race)


def add_run_options(command: argparse.ArgumentParser) -> None:
    """Describe the command line that :func:`race` starts."""
    command.add_argument('contestant', choices=CONTESTANTS)
    _add_training_options(command)
    command.set_defaults(measure=race_run)


def _add_training_options(command: argparse.ArgumentParser) -> None:
    command.add_argument('--method', choices=METHODS, default='kd')
    command.add_argument('--epochs', type=int, default=8)
    command.add_argument('--images', type=int, default=20_000, help='of the training set (default: %(default)s)')
    command.add_argument('--views', type=int, default=2, help='augmentations of an image, with the cache')
    command.add_argument('--data', default='data/cifar10', help='folder of CIFAR-10 (default: %(default)s)')
    command.add_argument(
        '--teacher', default='work_dirs/cifar10_quick/teacher/student.pth', help='its weights (default: %(default)s)'
    )
    command.add_argument('--seed', type=int, default=0)


def race_config(args: argparse.Namespace) -> Config:
    """Return the pair's config, in float32 and the usual layout, on the data and for the epochs of the race."""
    config = load_config(str(ROOT / CONFIG))
    config.custom_hooks[0].terms = terms_of(config.methods, args.method)
    config.model.head.loss.loss_weight = task_weight_of(config.task_weights, args.method)
    config.custom_hooks[0].teacher.checkpoint = args.teacher
    config.optim_wrapper.type = 'OptimWrapper'
    config.default_hooks.layout = None
    config.train_dataloader.dataset.indices = args.images
    config.train_cfg = dict(by_epoch=True, max_epochs=args.epochs, val_interval=1)
    config.param_scheduler[1].end = args.epochs
    for name in ('train', 'val', 'test'):
        config[f'{name}_dataloader'].dataset.data_root = args.data
    return config


class Images(Dataset):
    """The images of a CIFAR-10 split, each decoded and transformed by itself."""

    def __init__(self, args: argparse.Namespace, split: str, transform: Callable[[Image.Image], Tensor]) -> None:
        source = CIFAR10(data_root=args.data, split=split, indices=args.images if split == 'train' else None)
        infos = [source.get_data_info(i) for i in range(len(source))]
        self._images, self._labels = np.stack([info['img'] for info in infos]), [info['gt_label'] for info in infos]
        self._transform = transform

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        """Return an image and its label."""
        return self._transform(Image.fromarray(self._images[i])), self._labels[i]


class Classifier(nn.Module):
    """The modules of an mmpretrain classifier, from images to logits."""

    def __init__(self, config: Config, checkpoint: str | None = None) -> None:
        super().__init__()
        network: Any = build_network(config.filename)
        network.init_weights()
        if checkpoint:
            load_weights(network, checkpoint)
        self.backbone, self.neck, self.fc = network.backbone, network.neck, network.head.fc

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, K)."""
        return self.fc(self.neck(self.backbone(images))[-1])


def loaders(args: argparse.Namespace, config: Config) -> tuple[DataLoader, DataLoader]:
    """Return the loaders of both splits."""
    preprocessor = config.data_preprocessor
    mean, std = ([value / 255 for value in preprocessor[name]] for name in ('mean', 'std'))
    plain = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    augmented = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *plain]
    sets = (Images(args, split, transforms.Compose(x)) for split, x in (('train', augmented), ('test', plain)))
    options = dict(batch_size=config.train_dataloader.batch_size, num_workers=config.train_dataloader.num_workers)
    train, test = (
        DataLoader(images, shuffle=training, persistent_workers=options['num_workers'] > 0, **options)
        for images, training in zip(sets, (True, False), strict=True)
    )
    return train, test


def rate_factor(iteration: int, length: int, epochs: int) -> float:
    """Return the factor of the learning rate that the config's schedule has: an epoch of warm-up, then a cosine."""
    if iteration < length:
        return 0.1 + 0.9 * iteration / max(1, length - 1)
    return 0.5 * (1 + math.cos(math.pi * (iteration - length) / max(1, length * (epochs - 1))))


def accuracy(student: nn.Module, test: DataLoader) -> float:
    """Return the fraction of right answers."""
    student.eval()
    with torch.no_grad():
        right = sum(int((student(images).argmax(1) == labels).sum()) for images, labels in test)
    student.train()
    return right / len(test.dataset)  # type: ignore[arg-type]


def literal_loss(args: argparse.Namespace, config: Config) -> Callable[[Tensor, Tensor, dict, dict], Tensor]:
    """Return the distillation loss as it is usually written, weighed as the config does."""
    terms = config.custom_hooks[0].terms

    def kd(student: Tensor, teacher: Tensor, own: dict[str, Tensor], given: dict[str, Tensor]) -> Tensor:
        tau = terms[0].loss.tau
        divergence = F.kl_div(F.log_softmax(student / tau, 1), F.softmax(teacher / tau, 1), reduction='batchmean')
        return terms[0].weight * tau**2 * divergence

    def similarities(maps: Tensor) -> Tensor:
        rows = maps.flatten(1)
        return F.normalize(rows @ rows.T)

    def sp(student: Tensor, teacher: Tensor, own: dict[str, Tensor], given: dict[str, Tensor]) -> Tensor:
        parts = ((similarities(own[tap]) - similarities(given[tap])).square().mean() for tap in terms[0].student)
        return terms[0].weight * sum(parts)

    return dict(kd=kd, sp=sp)[args.method]


def recorded(network: nn.Module, taps: Sequence[str]) -> dict[str, Tensor]:
    """Return a dict that holds the outputs of some modules after each forward pass."""
    outputs: dict[str, Tensor] = {}
    for tap in taps:
        network.get_submodule(tap).register_forward_hook(
            lambda module, inputs, output, tap=tap: outputs.update({tap: output})
        )
    return outputs


def plain_steps(
    args: argparse.Namespace, config: Config, student: nn.Module, teacher: nn.Module, length: int
) -> Callable[[Tensor, Tensor], None]:
    """Return the step of a plain loop."""
    optimizer = torch.optim.SGD(student.parameters(), **sgd(config))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: rate_factor(i, length, args.epochs))
    teacher.eval().requires_grad_(False)
    taps = config.custom_hooks[0].terms[0].student if args.method == 'sp' else []
    own, given = recorded(student, taps), recorded(teacher, taps)
    loss = literal_loss(args, config)

    def step(images: Tensor, labels: Tensor) -> None:
        with torch.no_grad():
            answers = teacher(images)
        logits = student(images)
        total = config.model.head.loss.loss_weight * F.cross_entropy(logits, labels) + loss(logits, answers, own, given)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        schedule.step()

    return step


def sgd(config: Config) -> dict[str, Any]:
    """Return the options of the config's optimizer, which is SGD."""
    return {key: value for key, value in config.optim_wrapper.optimizer.items() if key != 'type'}


def torchdistill_steps(
    args: argparse.Namespace, config: Config, student: nn.Module, teacher: nn.Module, length: int
) -> Callable[[Tensor, Tensor], None]:
    """Return the step of torchdistill's box, described by its own configuration."""
    from torchdistill.core.distillation import get_distillation_box

    weight, terms = config.model.head.loss.loss_weight, config.custom_hooks[0].terms
    taps = terms[0].student if args.method == 'sp' else []
    if args.method == 'kd':
        kd = dict(
            student_module_path='.',
            student_module_io='output',
            teacher_module_path='.',
            teacher_module_io='output',
            temperature=terms[0].loss.tau,
            alpha=weight,
            beta=terms[0].weight,
        )
        parts = dict(kd=dict(criterion=dict(key='KDLoss', kwargs=kd), weight=1.0))
    else:
        wrapped = dict(input=dict(is_from_teacher=False, module_path='.', io='output'), target=dict(uses_label=True))
        parts = dict(
            ce=dict(
                criterion=dict(key='CrossEntropyLoss', kwargs={}),
                criterion_wrapper=dict(key='SimpleLossWrapper', kwargs=wrapped),
                weight=weight,
            )
        ) | {
            tap: dict(
                criterion=dict(
                    key='SPKDLoss',
                    kwargs=dict(student_output_path=tap, teacher_output_path=tap, reduction='batchmean'),
                ),
                weight=terms[0].weight,
            )
            for tap in taps
        }
    hooks = dict(forward_hook=dict(input=[], output=taps)) if taps else {}
    box = get_distillation_box(
        teacher,
        student,
        {},
        dict(
            num_epochs=args.epochs,
            train_data_loader={},
            val_data_loader={},
            teacher=dict(hooks, forward_proc='forward_batch_only', requires_grad=False),
            student=dict(hooks, forward_proc='forward_batch_only', requires_grad=True),
            optimizer=dict(key='SGD', kwargs=sgd(config)),
            scheduler=dict(
                key='LambdaLR',
                kwargs=dict(lr_lambda=lambda i: rate_factor(i, length, args.epochs)),
                scheduling_step=1,
            ),
            criterion=dict(key='WeightedSumLoss', kwargs=dict(sub_terms=parts)),
        ),
        torch.device('cpu'),
        None,
        False,
        1,
    )
    box.teacher_model.eval()

    def step(images: Tensor, labels: Tensor) -> None:
        box.pre_forward_process()
        box.post_forward_process(loss=box.forward_process(images, labels, supp_dict={}))

    return step


def by_loop(args: argparse.Namespace) -> dict[str, list[float]]:
    """Train by a loop over a DataLoader; return each epoch's seconds, without its test, and accuracy."""
    config = race_config(args)
    torch.manual_seed(args.seed)
    student = Classifier(config)
    teacher = Classifier(load_config(str(ROOT / config.custom_hooks[0].teacher.config)), args.teacher)
    train, test = loaders(args, config)
    steps = dict(plain=plain_steps, torchdistill=torchdistill_steps)[args.contestant]
    step = steps(args, config, student.train(), teacher, len(train))
    result: dict[str, list[float]] = dict(seconds=[], accuracy=[])
    for _ in range(args.epochs):
        began = time.perf_counter()
        for images, labels in train:
            step(images, labels)
        result['seconds'].append(time.perf_counter() - began)
        result['accuracy'].append(accuracy(student, test))
    return result


class EpochClock(Hook):
    """Keeps each epoch's seconds, without its test, and accuracy."""

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = dict(seconds=[], accuracy=[])

    def before_train_epoch(self, runner: Runner) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def after_train_epoch(self, runner: Runner) -> None:
        """Stop it."""
        self.found['seconds'].append(time.perf_counter() - self._began)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Keep the accuracy."""
        self.found['accuracy'].append((metrics or {})['accuracy/top1'] / 100)


def by_runner(args: argparse.Namespace) -> dict[str, list[float]]:
    """Train by mmengine's runner with the DistillationHook; return what :func:`by_loop` does."""
    config = race_config(args)
    config.randomness = dict(seed=args.seed)
    with tempfile.TemporaryDirectory() as folder:
        config.work_dir = folder
        if args.contestant in ('fast', 'compiled'):
            batched = Config.fromfile(str(ROOT / BATCHED))
            for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
                batched[name].dataset.dataset.data_root = args.data
                config[name] = batched[name]
            config.train_dataloader.dataset.dataset.indices = args.images
            config.train_dataloader.dataset.replay = args.views
            config.custom_hooks[0].teacher.cache = f'{folder}/cache'
            config.optim_wrapper.type = 'kd_plugins.BF16OptimWrapper'
            config.default_hooks.layout = dict(type='kd_plugins.ChannelsLastHook')
            config.compile = args.contestant == 'compiled'
        prepare_run(config)
        config.default_hooks.logger = dict(type='LoggerHook', interval=50)
        runner = Runner.from_cfg(config)
        clock = EpochClock()
        runner.register_hook(clock)
        runner.train()
    return clock.found


def race_run(args: argparse.Namespace) -> None:
    """Train by one contestant in this process, and print what was measured."""
    torch.manual_seed(args.seed)
    result: dict[str, Any] = (by_loop if args.contestant in ('plain', 'torchdistill') else by_runner)(args)
    print(json.dumps(result | dict(peak_bytes=resident('VmHWM'))))


def in_turn(command: str, names: Sequence[str], options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Let each contestant train in a process of its own; return what each has printed in its last line.

    Raises:
        UserError: One failed.
    """
    on_cpu = os.environ | {'CUDA_VISIBLE_DEVICES': ''}  # mmengine's runner would take a GPU, the loops do not
    results = {}
    for name in names:
        words = [word for option, value in options.items() for word in (f'--{option}', str(value))]
        done = subprocess.run(
            [sys.executable, str(TOOL), command, name, *words],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            env=on_cpu,
        )
        if done.returncode:
            raise UserError(f'{name} failed, see the error above')
        results[name] = json.loads(done.stdout.splitlines()[-1])
    return results


def race(args: argparse.Namespace) -> None:
    """Let the contestants train in turn; compare images a second, memory, and the time to a common accuracy."""
    if not Path(args.teacher).is_file():
        raise UserError(
            f'--teacher {args.teacher} does not exist: train it by python tools/train.py {CONFIG.rpartition("/")[0]}'
            '/teacher.py, or name its checkpoint'
        )
    names = args.contestants or [x for x in USUAL if x != 'torchdistill' or find_spec(x)]
    if 'torchdistill' in names and not find_spec('torchdistill'):
        raise UserError("torchdistill is not installed: pip install torchdistill, or this package's extra race")
    options = ('method', 'epochs', 'images', 'views', 'data', 'teacher', 'seed', 'threads')
    results = in_turn('race-run', names, {name: getattr(args, name) for name in options})
    target = min(result['accuracy'][-1] for result in results.values())
    for result in results.values():
        seconds, epochs = result['seconds'], range(args.epochs)
        first = next(i for i in epochs if result['accuracy'][i] >= target)
        result |= dict(
            images_per_second=args.images * args.epochs / sum(seconds),
            last_epoch=args.images / seconds[-1],
            seconds_to_target=sum(seconds[: first + 1]),
        )
    base = results.get('torchdistill', results[names[0]])
    table = Table(
        'contestant',
        'images/s',
        'in the last epoch',
        f'times {"torchdistill" if base is results.get("torchdistill") else names[0]}',
        'MiB at its peak',
        'accuracy, %',
        f's to {100 * target:.1f} %',
        title=f'{args.method}: ResNet-8 from ResNet-20, {args.images:,} images of CIFAR-10, {args.epochs} epochs, '
        f'{args.threads} threads',
    )
    for name, result in results.items():
        result['ratio'] = result['images_per_second'] / base['images_per_second']
        table.add_row(
            CONTESTANTS[name],
            f'{result["images_per_second"]:,.0f}',
            f'{result["last_epoch"]:,.0f}',
            f'{result["ratio"]:.2f} ({result["last_epoch"] / base["last_epoch"]:.2f})',
            f'{result["peak_bytes"] / 2**20:,.0f}',
            f'{100 * result["accuracy"][-1]:.1f}',
            f'{result["seconds_to_target"]:.0f}',
        )
    Console(width=max(140, Console().width)).print(table)
    keep(args, dict(method=args.method, target=target, results=results))
