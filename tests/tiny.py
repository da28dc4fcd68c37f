"""Tiny data in real formats, and runs that take a second."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.hub import get_config
from mmengine.runner import Runner

from kd_plugins.config import check_config, load_config

CLASSES = 4
PREPROCESSOR = dict(mean=[120.0] * 3, std=[60.0] * 3, num_classes=CLASSES)


def image_folder(root: Path, images: int = 24, size: int = 16) -> Path:
    """Write class folders of images whose brightness depends on the class."""
    rng = np.random.default_rng(0)
    for i in range(images):
        folder = root / f'class{i % CLASSES}'
        folder.mkdir(parents=True, exist_ok=True)
        image = rng.integers(0, 120, (size, size, 3)) + 40 * (i % CLASSES)
        cv2.imwrite(str(folder / f'{i:03d}.png'), image.astype(np.uint8))
    return root


def classifier(depth: int = 8, width: int = 4, **backbone: Any) -> dict:
    """Return the config dict of a very small classifier."""
    return dict(
        type='ImageClassifier',
        _scope_='mmpretrain',
        backbone=dict(type='kd_plugins.CifarResNet', depth=depth, width=width, **backbone),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=CLASSES,
            in_channels=4 * width,
            loss=dict(type='CrossEntropyLoss'),
            topk=(1,),
        ),
        data_preprocessor=dict(PREPROCESSOR),
    )


def classification_config(
    data: Path,
    work_dir: Path,
    model: dict | None = None,
    epochs: int = 2,
    **more: Any,
) -> Config:
    """Return the config of a run with three steps per epoch, augmentation, momentum and a schedule."""
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='RandomFlip', prob=0.5, direction='horizontal'),
        dict(type='PackInputs'),
    ]
    loader = dict(
        batch_size=8,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        dataset=dict(type='CustomDataset', data_root=str(data), pipeline=pipeline),
    )
    return Config(
        dict(
            default_scope='mmpretrain',
            work_dir=str(work_dir),
            experiment_name=str(work_dir).replace('/', '_'),
            model=model or classifier(),
            train_dataloader=loader,
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-4)),
            param_scheduler=[dict(type='MultiStepLR', milestones=[1], gamma=0.1)],
            randomness=dict(seed=0),
            default_hooks=dict(reseed=dict(type='kd_plugins.ReseedHook')),
            log_level='ERROR',
        )
        | more
    )


def saved_teacher(folder: Path, depth: int = 14, width: int = 4) -> dict:
    """Save a teacher with random weights, and return the config dict that loads it."""
    from kd_plugins.registry import MODELS

    config = classifier(depth, width)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = MODELS.build(config)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    path = folder / 'teacher.pth'
    torch.save({'state_dict': model.state_dict()}, path)
    return dict(config=config, checkpoint=str(path))


def neighbours_config(data: Path, work_dir: Path, distillation: dict | None = None, **more: Any) -> Config:
    """Return the config of a run with a ``KNNHook`` on :func:`image_folder`: 13 images vote on 11 others."""
    labelled = dict(
        type='CustomDataset',
        data_root=str(data),
        pipeline=[dict(type='kd_plugins.LoadImage'), dict(type='PackInputs')],
    )
    queries = [0, 1, 6, 7, 8, 12, 13, 14, 18, 19, 20]
    others = [i for i in range(24) if i not in queries]
    loaders = [dict(batch_size=4, num_workers=0, dataset=dict(labelled, indices=x)) for x in (others, queries)]
    hooks = [] if distillation is None else [dict(type='kd_plugins.DistillationHook', **distillation)]
    knn = dict(type='kd_plugins.KNNHook', bank=loaders[0], queries=loaders[1], k=5)
    hooks.append(knn | more.pop('neighbours', {}))
    return classification_config(data, work_dir, custom_hooks=hooks, **more)


def coco_folder(root: Path, images: int = 4, size: int = 64) -> Path:
    """Write a detection set in COCO's format, with one bright box per image."""
    rng = np.random.default_rng(0)
    (root / 'images').mkdir(parents=True)
    annotations = []
    for i in range(images):
        image = rng.integers(0, 90, (size, size, 3)).astype(np.uint8)
        x, y, w, h = 8 + 4 * i, 10, 24, 30
        image[y : y + h, x : x + w] += 120
        cv2.imwrite(str(root / 'images' / f'{i}.png'), image)
        annotations.append(dict(id=i + 1, image_id=i, category_id=1, bbox=[x, y, w, h], area=w * h, iscrowd=0))
    (root / 'annotations.json').write_text(
        json.dumps(
            dict(
                images=[dict(id=i, file_name=f'{i}.png', width=size, height=size) for i in range(images)],
                categories=[dict(id=1, name='person')],
                annotations=annotations,
            )
        )
    )
    return root


def stock_detector(data: Path, work_dir: Path) -> Config:
    """Return mmdet's RetinaNet-R18 config on a tiny set, for one epoch of two steps."""
    config = get_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    config.work_dir, config.log_level = str(work_dir), 'ERROR'
    config.experiment_name = str(work_dir).replace('/', '_')
    config.model.backbone.init_cfg = None
    config.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
    config.train_dataloader.dataset.update(
        data_root=str(data) + '/',
        ann_file='annotations.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=('person',)),
    )
    for step in config.train_dataloader.dataset.pipeline:
        if step.type == 'Resize':
            step.scale = (64, 64)
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    config.test_dataloader = config.test_cfg = config.test_evaluator = None
    config.train_cfg = dict(by_epoch=True, max_epochs=1)
    config.randomness = dict(seed=0)
    return config


def market_folder(root: Path, identities: int = 6, images: int = 6, distractors: int = 3, junk: int = 2) -> Path:
    """Write re-identification images in Market-1501's layout; every identity has its own colour.

    Every identity of the test set has one query (camera 1), and images of that camera in the gallery too.
    """
    rng = np.random.default_rng(0)
    colours = rng.integers(60, 200, (2 * identities + 1, 3))

    def write(folder: str, identity: int, camera: int, number: int, colour: np.ndarray) -> None:
        path = root / folder / f'{identity if identity < 0 else f"{identity:04}"}_c{camera}s1_{number:06}_00.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(-40, 40, (32, 16, 3))
        cv2.imwrite(str(path), (colour + noise).clip(0, 255).astype(np.uint8))

    for person in range(1, identities + 1):
        for number in range(images):
            write('bounding_box_train', person, 1 + number % 3, number, colours[person])
        other = person + identities
        write('query', other, 1, 0, colours[other])
        for number in range(1, images):
            write('bounding_box_test', other, 1 + (number - 1) % 3, number, colours[other])
    for identity, count in ((0, distractors), (-1, junk)):
        for number in range(count):
            write('bounding_box_test', identity, 1 + number % 3, number, colours[rng.integers(len(colours))])
    return root


def reid_config(data: Path, work_dir: Path, identities: int = 6, epochs: int = 2, **more: Any) -> Config:
    """Return the config of a re-identification run on the images of :func:`market_folder`, validated at its end."""

    def loader(split: str, sampler: dict, batch_size: int, steps: list[dict], **pack: Any) -> dict:
        pipeline = [dict(type='kd_plugins.LoadImage'), *steps, dict(type='PackInputs', **pack)]
        return dict(
            batch_size=batch_size,
            num_workers=0,
            sampler=sampler,
            dataset=dict(type='kd_plugins.Market1501', data_root=str(data), split=split, pipeline=pipeline),
        )

    test = loader(
        'test',
        dict(type='DefaultSampler', shuffle=False),
        8,
        [],
        meta_keys=('img_path', 'identity', 'camera', 'is_query'),
    )
    model = dict(
        type='kd_plugins.ReIDModel',
        backbone=dict(type='kd_plugins.CifarResNet', depth=8, width=4),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='kd_plugins.ReIDHead', num_classes=identities, in_channels=16),
        data_preprocessor=dict(mean=[120.0] * 3, std=[60.0] * 3),
    )
    return Config(
        dict(
            default_scope='mmpretrain',
            work_dir=str(work_dir),
            experiment_name=str(work_dir).replace('/', '_'),
            model=model,
            train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=epochs),
            val_cfg=dict(),
            test_cfg=dict(),
            randomness=dict(seed=0),
            log_level='ERROR',
            train_dataloader=loader(
                'train',
                dict(type='kd_plugins.PKSampler', identities=3, instances=4),
                12,
                [dict(type='RandomFlip', prob=0.5, direction='horizontal')],
            ),
            val_dataloader=test,
            val_evaluator=dict(type='kd_plugins.ReIDMetric'),
            test_dataloader=test,
            test_evaluator=dict(type='kd_plugins.ReIDMetric'),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-4)),
            param_scheduler=[dict(type='MultiStepLR', milestones=[1], gamma=0.1)],
            default_hooks=dict(reseed=dict(type='kd_plugins.ReseedHook')),
        )
        | more
    )


class Moves(Hook):
    """Checks that a run trains: of every group of the optimiser with a learning rate, something has changed."""

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        self.iter = runner.iter
        self.start = [[p.detach().clone() for p in group['params']] for group in runner.optim_wrapper.param_groups]

    def after_train(self, runner: Runner) -> None:
        if runner.iter == self.iter:  # a run that had ended already
            return
        for group, start in zip(runner.optim_wrapper.param_groups, self.start, strict=True):
            pairs = [(p, old) for p, old in zip(group['params'], start, strict=True) if p.requires_grad]
            assert (
                not pairs
                or not group.get('initial_lr', group['lr'])
                or any(not torch.equal(p, old) for p, old in pairs)
            )


def train(config: Config) -> Runner:
    """Run a config to its end, and check that it trains."""
    runner = Runner.from_cfg(config)
    runner.register_hook(Moves())
    runner.train()
    return runner


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of a model's weights, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Return whether two sets of weights have the same keys and equal values."""
    return a.keys() == b.keys() and all(torch.equal(a[k].cpu(), b[k].cpu()) for k in a)


@cache
def config_by_method(path: str, method: str | None = None) -> Config:
    """Return a config that passes the checks of a run, as ``METHOD`` in the environment makes it."""
    with pytest.MonkeyPatch.context() as patch:
        if method:
            patch.setenv('METHOD', method)
        config = load_config(path)
    check_config(config)
    return config
