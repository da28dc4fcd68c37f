"""Distilled runs in one process and, with the same batches, in two under data-parallel.

Started once per rank with torch's usual environment variables and the folder for the results, ``rank<r>.pth``. Each
rank first trains alone, one with the hook and one with the model; the two together have to reproduce every number of
these runs.
"""

import datetime
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from tiny import classification_config, classifier, image_folder, saved_teacher, weights
from torch import nn

from kd_plugins.distillation.distillation import check_finite
from kd_plugins.errors import UserError
from kd_plugins.hooks import DistillationHook, WatchHook
from kd_plugins.losses import DistillationLoss
from kd_plugins.models import Distiller
from kd_plugins.registry import MODELS

RELATIONAL = {
    name: dict(type='kd_plugins.RKDLoss', distance_weight=d, angle_weight=a)
    for name, d, a in (('rkd-d', 1.0, 0.0), ('rkd-a', 0.0, 1.0), ('rkd-da', 1.0, 2.0))
}
RELATIONAL['sp'] = dict(type='kd_plugins.SPLoss')
RELATIONAL['pkt'] = dict(type='kd_plugins.PKTLoss')
RELATIONAL['dist'] = dict(type='kd_plugins.DISTLoss')
RELATIONAL['own'] = dict(type='SameClassDistance')
PER_SAMPLE = {name: dict(type=f'kd_plugins.{name.upper()}Loss') for name in ('kd', 'dkd', 'at', 'nst')}
ADAPTED = [
    dict(name='hint', loss=dict(type='kd_plugins.FitNetLoss'), student='maps', teacher='maps', adapter='auto'),
    dict(name='sp', loss=dict(type='kd_plugins.SPLoss'), student='maps', teacher='maps', weight=100.0, adapter='auto'),
    dict(name='pkd', loss=dict(type='kd_plugins.PKDLoss'), student='maps', teacher='maps', adapter='auto'),
    dict(
        name='cosine',
        loss=dict(type='kd_plugins.CosineLoss'),
        student='maps',
        teacher='maps',
        adapter='mlp',
        resize='teacher',
    ),
]
CRITIC = [
    dict(name='gan', loss=dict(type='kd_plugins.NSTGANLoss', hidden=8), student='maps', teacher='maps'),
    dict(name='vid', loss=dict(type='kd_plugins.VIDLoss'), student='maps', teacher='maps'),
    dict(name='projected', loss=dict(type='Projected'), student='maps', teacher='maps'),
    dict(name='off', loss=dict(type='kd_plugins.NSTGANLoss', hidden=8), student='maps', teacher='maps', weight=0),
]
BANKS = [
    dict(
        name='crd',
        loss=dict(type='kd_plugins.CRDLoss', num_samples=64, dim=8, negatives=20),
        student='maps',
        teacher='maps',
    )
]
BSS = [dict(name='bss', loss=dict(type='kd_plugins.BSSLoss'), student='fc', teacher='fc', weight=5.0)]
WAYS = ('hook', 'model')
# The runner's own wrapper, without the device index that it would add, which a CPU does not have.
WRAPPER = dict(model_wrapper_cfg=dict(type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None))
RUNS = itertools.count()


@MODELS.register_module()
class SameClassDistance(DistillationLoss):
    """A user's own loss: the distances between images of a class, compared over the global batch."""

    batch_relational = True
    needs_labels = True

    def forward(self, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        student, teacher = (torch.cdist(x.flatten(1), x.flatten(1)).square() for x in (student, teacher))
        same = labels[:, None] == labels
        return (same * (student - teacher)).square().sum() / same.sum()


class Net(BaseModel):
    """Convolution, pooling, classifier; without BatchNorm, whose statistics differ between processes.

    With a ``bias``, it predicts class 0 for every image.
    """

    def __init__(self, width: int, bias: float = 0.0, data_preprocessor: dict | None = None) -> None:
        super().__init__(data_preprocessor)
        self.maps = nn.Conv2d(3, width, 3)
        self.fc = nn.Linear(width, 4)
        with torch.no_grad():
            self.fc.bias[0] += bias

    def forward(self, inputs: torch.Tensor, data_samples: Any = None, mode: str = 'tensor') -> Any:
        logits = self.fc(self.maps(inputs).relu().mean((2, 3)))
        if mode != 'loss':
            return logits
        return dict(loss=nn.functional.cross_entropy(logits, torch.cat([x.gt_label for x in data_samples])))


class Infinite(nn.Module):
    """A loss that is infinite on rank 1, in training."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return student.sum() * (float('inf') if self.rank and torch.is_grad_enabled() else 0)


class Graphless(nn.Module):
    """A loss without a gradient on rank 1, as one of objects where a batch has none."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return (student.detach() if self.rank else student).square().mean()


class Noise(torch.utils.data.Dataset):
    """Random images."""

    def __init__(self, size: int = 7) -> None:
        generator = torch.Generator().manual_seed(3)
        self.images = torch.randn(64, 3, size, size, generator=generator)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        return dict(
            inputs=self.images[index],
            data_samples=BaseDataElement(metainfo=dict(sample_idx=index), gt_label=torch.tensor([index % 4])),
        )


class Watch(Hook):
    """Records losses, weights and adapters after each iteration; with ``one_by_one``, each has one term only."""

    def __init__(self, one_by_one: bool) -> None:
        self.one_by_one = one_by_one
        self.weights: list[float] = []
        self.losses: list[dict] = []
        self.states: list[dict] = []
        self.adapters: list[dict] = []

    def before_train(self, runner: Runner) -> None:
        self.record(runner)
        self.weights = [term.weight for term in core_of(runner).terms]

    def record(self, runner: Runner) -> None:
        model = getattr(runner.model, 'module', runner.model)
        self.states.append(weights(model))
        self.adapters.append(weights(core_of(runner)))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if self.one_by_one:
            for i, term in enumerate(core_of(runner).terms):
                term.weight = self.weights[i] * (i == runner.iter)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.losses.append({name: value.item() for name, value in outputs.items()})
        self.record(runner)


def core_of(runner: Runner) -> nn.Module:
    """Return the distillation of the hook or of the model."""
    hooks = [hook for hook in runner.hooks if isinstance(hook, DistillationHook)]
    return hooks[0].distillation if hooks else getattr(runner.model, 'module', runner.model).distillation


def run(
    way: str,
    terms: list[dict],
    folder: Path,
    one_by_one: bool = False,
    accumulate: int = 1,
    size: int = 7,
    bias: float = 0.0,
    task: str = 'train',
    epochs: int = 1,
    watched: bool = False,
) -> dict:
    """Train the small network on global batches of 8; return losses, weights and adapters of each iteration.

    Where it is ``watched``, also return the norms of the terms' gradients.
    """
    together = dist.is_initialized()
    teacher = dict(config=dict(type=Net, width=6), checkpoint=str(folder / f'teacher{bias:.0f}.pth'))
    distillation = dict(teacher=teacher, terms=terms, task=task)
    model = dict(type=Net, width=5, bias=bias)
    if way == 'model':
        model = dict(type=Distiller, student=model, input_shape=(3, 7, 7), **distillation)
    watch = Watch(one_by_one)
    runner = Runner(
        model=model,
        work_dir=str(folder / 'runs'),
        experiment_name=f'run{next(RUNS)}',
        train_dataloader=dict(
            batch_size=4 if together else 8,
            num_workers=0,
            dataset=Noise(size),
            sampler=dict(type=DefaultSampler, shuffle=False),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=-(-len(terms) // 8) if one_by_one else epochs),
        launcher='pytorch' if together else 'none',
        cfg=Config(WRAPPER if together else {}),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9), accumulative_counts=accumulate),
        # Ranks have different seeds: data-parallel has to make their initial weights equal.
        randomness=dict(seed=5, diff_rank_seed=True),
        log_level='ERROR',
        default_hooks=dict(checkpoint=None),
        custom_hooks=[dict(type=DistillationHook, **distillation)] if way == 'hook' else None,
    )
    runner.register_hook(watch, 'LOWEST')
    if watched:
        runner.register_hook(WatchHook(gradients=1))
    runner.train()
    norms = {name: x.data[0].tolist() for name, x in runner.message_hub.log_scalars.items() if 'gradient' in name}
    return dict(losses=watch.losses, states=watch.states, adapters=watch.adapters, norms=norms)


def scenarios(folder: Path, ways: Sequence[str] = WAYS) -> dict:
    """Run everything in which one process and two must agree."""
    every = [
        dict(name=name, loss=loss, student=tap, teacher=tap, weight=1e4 if name == 'pkt' else 1.0)
        for name, loss in (RELATIONAL | PER_SAMPLE).items()
        for tap in ['fc' if name in ('kd', 'dkd', 'dist') else 'maps']
    ]
    return {
        (way, name): run(way, terms, folder, **options)
        for way in ways
        for name, terms, options in (
            ('terms', every, dict(one_by_one=True)),
            ('adapters', ADAPTED, {}),
            ('critic', CRITIC, {}),
            ('banks', BANKS, dict(epochs=2)),
            ('bss', BSS, dict(bias=3.0)),
            ('accumulation', ADAPTED, dict(accumulate=2)),
            ('watched', [x for x in every if x['name'] in ('kd', 'sp')], dict(watched=True)),
            ('without task', [x for x in every if x['name'] in ('kd', 'sp')], dict(task='off')),
        )
    }


def real_run(way: str, folder: Path) -> dict:
    """Train an mmpretrain classifier on an image folder, one of its two trained adapters at weight 0."""
    tap = 'backbone.stage2'
    distillation = dict(
        teacher=dict(config=classifier(14), checkpoint=str(folder / 'teacher.pth')),
        terms=[
            dict(name='sp', loss=dict(type='kd_plugins.SPLoss'), student=tap, teacher=tap, weight=100.0),
            dict(
                name='off', loss=dict(type='kd_plugins.FitNetLoss'), student=tap, teacher=tap, adapter='auto', weight=0
            ),
            dict(name='hint', loss=dict(type='kd_plugins.FitNetLoss'), student=tap, teacher=tap, adapter='auto'),
        ],
    )
    more: dict = dict(launcher='pytorch') | WRAPPER
    if way == 'hook':
        more |= dict(custom_hooks=[dict(type='kd_plugins.DistillationHook', **distillation)])
    else:
        more |= dict(
            model=dict(type='kd_plugins.Distiller', student=classifier(), input_shape=(3, 16, 16), **distillation)
        )
    config = classification_config(folder / 'images', folder / 'real' / way, **more)
    config.train_dataloader.batch_size = 4
    config.randomness.diff_rank_seed = True
    runner = Runner.from_cfg(config)
    runner.train()
    return dict(
        iterations=runner.iter,
        adapters=weights(core_of(runner)),
        parameters={k: v.detach() for k, v in runner.model.module.named_parameters()},
    )


def hints_alone(way: str, task: str, folder: Path, find_unused: bool) -> dict | str:
    """Train a classifier on a hint at its second stage; return the weights before and after, or the error."""
    tap = 'backbone.stage2'
    distillation = dict(
        teacher=dict(config=classifier(14), checkpoint=str(folder / 'teacher.pth')),
        task=task,
        terms=[dict(name='hint', loss=dict(type='kd_plugins.FitNetLoss'), student=tap, teacher=tap, adapter='auto')],
    )
    wrapper = dict(WRAPPER['model_wrapper_cfg'], find_unused_parameters=find_unused)
    more: dict = dict(launcher='pytorch', model_wrapper_cfg=wrapper)
    if way == 'hook':
        more |= dict(custom_hooks=[dict(type='kd_plugins.DistillationHook', **distillation)])
    else:
        more |= dict(
            model=dict(type='kd_plugins.Distiller', student=classifier(), input_shape=(3, 16, 16), **distillation)
        )
    config = classification_config(folder / 'images', folder / 'hints' / f'{way}{task}{find_unused}', **more)
    config.train_dataloader.batch_size = 4
    config.optim_wrapper.optimizer.weight_decay = 0.1
    runner = Runner.from_cfg(config)
    start = {}

    class Start(Hook):
        """Records the initial weights."""

        def before_train(self, runner: Runner) -> None:
            start.update({k: v.detach().clone() for k, v in runner.model.module.named_parameters()})

    runner.register_hook(Start())
    try:
        runner.train()
    except UserError as error:
        return str(error)
    return dict(
        start=start,
        end={k: v.detach() for k, v in runner.model.module.named_parameters()},
        adapters=weights(core_of(runner)),
    )


def error_of_unequal_shapes(way: str, folder: Path, rank: int) -> str:
    """Return the error of SP on maps whose size depends on the rank."""
    term = dict(name='sp', loss=dict(type='kd_plugins.SPLoss'), student='maps', teacher='maps')
    try:
        run(way, [term], folder, size=7 + 2 * rank)
    except UserError as error:
        return str(error)
    return 'no error'


def error_of_one_rank(way: str, folder: Path, rank: int) -> str:
    """Return the error of a loss that is not finite on rank 1 alone."""
    term = dict(name='hint', loss=dict(type=Infinite, rank=rank), student='maps', teacher='maps', adapter='auto')
    try:
        run(way, [dict(name='kd', loss=dict(type='kd_plugins.KDLoss'), student='fc', teacher='fc'), term], folder)
    except UserError as error:
        return str(error)
    return 'no error'


def error_of_unlike_losses(rank: int) -> str:
    """Return the error where rank 1 has a loss that rank 0 lacks; finite ones, and none, raise nothing."""
    one, nan = torch.ones(()), torch.tensor(float('nan'))
    check_finite({'loss_box': one} if rank else {})
    check_finite({'loss_box': one} | ({'loss_grid': one} if rank else {}))
    try:
        check_finite({'loss_box': one} | ({'loss_grid': nan} if rank else {}))
    except UserError as error:
        return str(error)
    return 'no error'


def norms_of_one_graph(way: str, folder: Path, rank: int) -> dict:
    """Return the norms of the gradients of a loss that has one on rank 0 alone."""
    term = dict(name='own', loss=dict(type=Graphless, rank=rank), student='maps', teacher='maps')
    return run(way, [term], folder, watched=True)['norms']


def pending(folder: Path, **checkpoint: int) -> list[dict]:
    """Train by iterations, two batches a step, whole and resumed between two steps; return the weights of both."""
    ends = []
    folder = folder / str(checkpoint)
    for resume in (False, True):
        runner = Runner(
            model=dict(type=Net, width=5),
            work_dir=str(folder / 'pending'),
            experiment_name=f'run{next(RUNS)}',
            train_dataloader=dict(
                batch_size=4,
                num_workers=0,
                dataset=Noise(),
                sampler=dict(type=DefaultSampler, shuffle=False),
                collate_fn=dict(type='default_collate'),
            ),
            train_cfg=dict(by_epoch=False, max_iters=6),
            launcher='pytorch',
            cfg=Config(WRAPPER),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9), accumulative_counts=2),
            randomness=dict(seed=5),
            log_level='ERROR',
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', by_epoch=False, **checkpoint),
                accumulation=dict(type='kd_plugins.AccumulationHook'),
            ),
            load_from=str(folder / 'pending/iter_3.pth') if resume else None,
            resume=resume,
        )
        runner.train()
        ends.append(weights(runner.model.module))
    return ends


@MODELS.register_module()
class Projected(nn.Module):
    """A loss with weights of its own, of which one is frozen, as a network that judges images has."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed = nn.Conv2d(5, 6, 1).requires_grad_(False)
        self.learned = nn.Conv2d(6, 6, 1)

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return (self.learned(self.fixed(student)) - teacher).square().mean()


def main(folder: Path) -> None:
    """Run everything and save the results of this rank."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    rank = int(os.environ['RANK'])
    torch.manual_seed(7)
    own = folder / f'own{rank}'
    own.mkdir()
    for bias in (0.0, 3.0):
        torch.save({'state_dict': Net(6, bias).state_dict()}, own / f'teacher{bias:.0f}.pth')
    results: dict = dict(alone=scenarios(own, [WAYS[rank]]))
    if rank == 0:
        torch.set_default_dtype(torch.float32)
        image_folder(folder / 'images')
        results['stock'] = list(MODELS.build(classifier()).state_dict())
        saved_teacher(folder)
        torch.set_default_dtype(torch.float64)
    # Before the runner does, which would select a CUDA device first.
    dist.init_process_group('gloo', timeout=datetime.timedelta(seconds=60))
    results['together'] = scenarios(own)
    results['shapes'] = {way: error_of_unequal_shapes(way, own, rank) for way in WAYS}
    results['infinite'] = {way: error_of_one_rank(way, own, rank) for way in WAYS}
    results['unlike'] = error_of_unlike_losses(rank)
    results['one graph'] = {way: norms_of_one_graph(way, own, rank) for way in WAYS}
    results['pending'] = [pending(folder, interval=3), pending(folder, interval=4, save_begin=3)]
    torch.set_default_dtype(torch.float32)
    results['real'] = {way: real_run(way, folder) for way in WAYS}
    for name, find_unused in (('hints', True), ('refused', False)):
        results[name] = {x: hints_alone(*x, folder, find_unused) for x in itertools.product(WAYS, ('log', 'off'))}
    torch.save(results, folder / f'rank{rank}.pth')
    dist.barrier()
    dist.destroy_process_group()


if __name__ == '__main__':
    main(Path(sys.argv[1]))
