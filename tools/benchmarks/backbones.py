"""Backbones from images without labels: by this package and by LightlyTrain, from one teacher, on the same images.

Each contestant trains in a process of its own, and is scored by the nearest neighbours of its features. LightlyTrain
gets student and teacher through the interface that it has for networks of other libraries, and trains by its own
augmentations, loss and optimiser; the teacher sees images of the same size.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.runner import Runner
from mmpretrain.models import ClsDataPreprocessor
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.race import TOOL, in_turn
from benchmarks.reid import resident
from benchmarks.timing import keep
from kd_plugins.config import load_config
from kd_plugins.distillation.sources import build_network, build_teacher
from kd_plugins.engine import has_bfloat16, prepare_run
from kd_plugins.errors import UserError
from kd_plugins.registry import DATASETS

CONFIG = 'configs/pretrain/resnet18-narrow_from_mobilenet-v2.py'
PAGE = 'configs/pretrain/README.md'
CONTESTANTS = {
    'views': 'kd_plugins, two views of each image, cache',
    'crops': 'kd_plugins, every crop new',
    'lightly': 'LightlyTrain',
    'lightly-rate': 'LightlyTrain at the learning rate of kd_plugins',
}


def add_options(command: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    command.add_argument('--contestants', nargs='+', choices=CONTESTANTS, help='(default: all that are installed)')
    _add_training_options(command)
    command.set_defaults(measure=backbones)


def add_run_options(command: argparse.ArgumentParser) -> None:
    """Describe the command line that :func:`backbones` starts."""
    command.add_argument('contestant', choices=CONTESTANTS)
    _add_training_options(command)
    command.set_defaults(measure=backbone_run)


def _add_training_options(command: argparse.ArgumentParser) -> None:
    command.add_argument('--method', default='cosine', help='of configs/_base_/methods_pretrain.py (default: cosine)')
    command.add_argument('--epochs', type=int, default=4)
    command.add_argument('--every', type=int, default=1, metavar='N', help='take each N-th image alone')
    command.add_argument('--seed', type=int, default=0)


def backbone_config(args: argparse.Namespace) -> Config:
    """Return the config of the backbone, for the images, the epochs and the method of the comparison."""
    os.environ['METHOD'] = args.method
    config = load_config(str(TOOL.parents[1] / CONFIG))
    views, batch = config.train_dataloader.dataset, config.train_dataloader.batch_size
    chosen = range(0, len(DATASETS.build(dict(views.dataset, _scope_='mmpretrain'))), args.every)
    if len(chosen) < 2 * batch:
        raise UserError(f'--every {args.every} leaves {len(chosen)} images, expected at least two batches of {batch}')
    views.dataset.indices = [*chosen]
    if args.contestant == 'crops':
        config.train_dataloader.dataset = views.dataset
        config.custom_hooks[0].teacher.cache = None
    config.train_dataloader.drop_last = True  # as LightlyTrain does
    config.train_cfg.max_epochs = args.epochs
    config.param_scheduler[1].T_max = max(1, args.epochs - 1)
    config.randomness = dict(seed=args.seed)
    return config


class Clock:
    """When each training step of a network began; with one thread, in the time that this thread has run."""

    def __init__(self, network: nn.Module) -> None:
        self.times: list[float] = []
        self._now = time.perf_counter if torch.get_num_threads() > 1 else time.thread_time
        network.register_forward_pre_hook(self._note)

    def _note(self, network: nn.Module, inputs: Any) -> None:
        if network.training and torch.is_grad_enabled():
            self.times.append(self._now())

    def seconds(self, epochs: int, length: int) -> list[float]:
        """Return what each epoch took, by the steps that it began; of the dry run's passes there are none."""
        starts = self.times[-epochs * length :]
        return [(starts[i + length - 1] - starts[i]) * length / (length - 1) for i in range(0, epochs * length, length)]


def by_runner(args: argparse.Namespace, folder: str) -> tuple[nn.Module, Clock, int]:
    """Train by mmengine's runner; return the backbone, its clock, and the steps of an epoch."""
    config = backbone_config(args)
    config.work_dir = folder
    if args.contestant == 'views':
        config.custom_hooks[0].teacher.cache = f'{folder}/cache'
    config.default_hooks.knn = None  # all are scored alike, below
    prepare_run(config)
    runner = Runner.from_cfg(config)
    model: Any = runner.model
    clock = Clock(model.backbone)
    runner.train()
    return model.backbone, clock, len(runner.train_dataloader)


class Wrapped(nn.Module):
    """A backbone of mmpretrain as LightlyTrain takes networks of other libraries, both as student and as teacher."""

    def __init__(self, backbone: nn.Module, size: int | None = None) -> None:
        super().__init__()
        self.backbone, self.size = backbone, size
        backbone.eval()  # so that the statistics of BatchNorm stay
        with torch.no_grad():
            self._channels = backbone(torch.zeros(1, 3, 64, 64))[-1].shape[1]
        backbone.train()

    def feature_dim(self) -> int:
        """Return the number of channels."""
        return self._channels

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        """Return the last map."""
        if self.size:
            x = F.interpolate(x, (self.size, self.size), mode='bilinear', align_corners=False)
        return dict(features=self.backbone(x)[-1])

    def forward_pool(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean of a map."""
        return dict(pooled_features=F.adaptive_avg_pool2d(x['features'], 1))

    def get_model(self) -> nn.Module:
        """Return the network that is saved."""
        return self.backbone


def by_lightly(args: argparse.Namespace, folder: str) -> tuple[nn.Module, Clock, int]:
    """Train by LightlyTrain's distillation; return what :func:`by_runner` does."""
    import lightly_train

    config = backbone_config(args)
    images = DATASETS.build(dict(config.train_dataloader.dataset.dataset, _scope_='mmpretrain'))
    files = [images.get_data_info(i)['img_path'] for i in range(len(images))]
    record = config.custom_hooks[0].teacher
    student: Any = build_network(config.filename)
    student.init_weights()
    teacher: Any = build_teacher(record.config, record.checkpoint)
    clock, batch = Clock(student.backbone), config.train_dataloader.batch_size
    options: dict[str, Any] = {}
    if args.contestant == 'lightly-rate':
        # LightlyTrain scales a rate by the root of the batch over 1,536.
        options = dict(optim='adamw', optim_args=dict(lr=config.optim_wrapper.optimizer.lr * (1536 / batch) ** 0.5))
    lightly_train.pretrain(
        out=f'{folder}/out',
        data=files,
        model=Wrapped(student.backbone),
        method_args=dict(teacher=Wrapped(teacher.backbone, record.size)),
        epochs=args.epochs,
        batch_size=batch,
        num_workers=config.train_dataloader.num_workers,
        accelerator='cpu',
        precision='bf16-mixed' if has_bfloat16() else '32-true',
        seed=args.seed,
        transform_args=dict(image_size=(128, 128)),
        **options,
    )
    return student.backbone, clock, len(files) // batch


@torch.no_grad()
def neighbours(backbone: nn.Module, config: Config) -> float:
    """Return the accuracy, in percent, of the nearest neighbours among the config's labelled images."""
    from kd_plugins.evaluation import knn_accuracy  # needs faiss

    preprocessor, sides = ClsDataPreprocessor(**config.data_preprocessor), []
    backbone.eval()
    for name in ('bank', 'queries'):
        dataset = DATASETS.build(dict(config.default_hooks.knn[name], _scope_='mmpretrain'))
        sampler = DefaultSampler(dataset, shuffle=False)
        loader = Runner.build_dataloader(dict(batch_size=64, num_workers=1, sampler=sampler, dataset=dataset))
        features, labels = [], []
        for batch in loader:
            batch = preprocessor(batch)
            features.append(backbone(batch['inputs'])[-1].mean((2, 3)).numpy())
            labels += [int(sample.gt_label) for sample in batch['data_samples']]
        sides += [np.concatenate(features), np.array(labels)]
    return knn_accuracy(*sides)


def backbone_run(args: argparse.Namespace) -> None:
    """Train by one contestant in this process, and print what was measured."""
    torch.manual_seed(args.seed)
    train: Callable[..., tuple[nn.Module, Clock, int]] = by_lightly if 'lightly' in args.contestant else by_runner
    with tempfile.TemporaryDirectory() as folder:
        backbone, clock, length = train(args, folder)
    seconds, peak = clock.seconds(args.epochs, length), resident('VmHWM')
    config = backbone_config(args)
    images, score = length * config.train_dataloader.batch_size, neighbours(backbone, config)
    print(json.dumps(dict(seconds=seconds, images=images, accuracy=score, peak_bytes=peak)))


def backbones(args: argparse.Namespace) -> None:
    """Let the contestants train in turn; compare images a second, memory, and the nearest neighbours."""
    names = args.contestants or [x for x in CONTESTANTS if 'lightly' not in x or find_spec('lightly_train')]
    if any('lightly' in name for name in names) and not find_spec('lightly_train'):
        raise UserError('LightlyTrain is not installed: pip install lightly-train (its licence is AGPL-3.0)')
    for path in ('data/mobilenet_v2.pth', 'data/imagenette-128/val'):
        if not Path(path).exists():
            raise UserError(f'{path} does not exist: {PAGE} says what is expected where')
    options = ('method', 'epochs', 'every', 'seed', 'threads')
    results = in_turn('backbones-run', names, {name: getattr(args, name) for name in options})
    base = results.get('lightly', results[names[0]])
    table = Table(
        'contestant',
        'images/s',
        'in the last epoch',
        f'times {CONTESTANTS["lightly"] if base is results.get("lightly") else names[0]}',
        'minutes',
        'MiB at its peak',
        'nearest neighbours, %',
        title=f'{args.method}: a narrow ResNet-18 from a MobileNetV2, {args.epochs} epochs, {args.threads} threads',
    )
    for result in results.values():
        result['images_per_second'] = result['images'] * args.epochs / sum(result['seconds'])
    for name, result in results.items():
        result['ratio'] = result['images_per_second'] / base['images_per_second']
        table.add_row(
            CONTESTANTS[name],
            f'{result["images_per_second"]:,.1f}',
            f'{result["images"] / result["seconds"][-1]:,.1f}',
            f'{result["ratio"]:.2f}',
            f'{sum(result["seconds"]) / 60:.1f}',
            f'{result["peak_bytes"] / 2**20:,.0f}',
            f'{result["accuracy"]:.1f}',
        )
    Console(width=max(140, Console().width)).print(table)
    keep(args, dict(method=args.method, results=results))
