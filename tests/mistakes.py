"""A thousand mistakes at the command lines, by kind, and how each ends.

    python tests/mistakes.py --all
    python tests/mistakes.py --kind teacher terms --show

A mistake is a good config, data set or command line with one thing changed, as a line of Python that a user might have
written at the config's end, and the words that the message must hold to be of help ('a|b' is one or the other). Each is
run as a command of its own, by a fork. It ends

clear       with a non-zero exit status and one line on stderr, 'error: ...', that holds these words
misleading  with one line that does not hold them
traceback   with a Python traceback, or several lines
exit 0      as if nothing were wrong
hung        not within the time limit

tests/tools/test_mistakes.py runs one of each kind.
"""
# ruff: noqa: E501 - a mistake stands in a line

import argparse
import collections
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import CommandLine
from safetensors.torch import save_file
from tiny import (
    classification_config,
    classifier,
    coco_folder,
    image_folder,
    market_folder,
    reid_config,
    saved_teacher,
    stock_detector,
)
from tiny_study import write_cifar, write_study

LIMIT = 60  # seconds
KD = dict(name='kd', loss=dict(type='kd_plugins.KDLoss'), student='head.fc', teacher='head.fc')
NST = dict(name='nst', loss=dict(type='kd_plugins.NSTLoss'), student='backbone.stage3', teacher='backbone.stage3')
Prepare = Callable[[Path, Path], object]


@dataclass
class Mistake:
    """One mistake.

    Attributes:
        kind: What kind of mistake it is.
        base: The good config that it is made in (a key of :func:`bases`).
        change: What is written at the config's end; ASSETS is the folder of data and checkpoints.
        words: What the message must hold.
        arguments: What follows the config on the command line.
        tool: The command.
        prepare: Called with the run's folder and the assets before the run.
        environment: Of the process.
        ascii: Whether the process has an ASCII locale.
        config: Name of the config file; None for a command line without one.
    """

    kind: str
    base: str
    change: str
    words: Sequence[str]
    arguments: Sequence[Any] = ()
    tool: str = 'train'
    prepare: Prepare | None = None
    environment: dict[str, str] = field(default_factory=dict)
    ascii: bool = False
    config: str | None = 'cfg.py'

    @property
    def name(self) -> str:
        """The mistake in a line."""
        what = self.change.replace('\n', '; ') or (self.prepare and getattr(self.prepare, 'described', '')) or ''
        line = ' '.join(str(x) for x in self.arguments)
        environment = ' '.join(f'{k}={v}' for k, v in self.environment.items())
        return ' '.join(x for x in (self.tool, self.base, what, line, environment, 'ascii' * self.ascii) if x)


def described(text: str, function: Prepare) -> Prepare:
    """Name what prepares a mistake."""
    function = partial(function)
    function.described = text
    return function


# ---- the good configs ------------------------------------------------------------------------------------------------


def build_assets(root: Path) -> None:
    """Make the data, the checkpoints of other runs and the study that the mistakes are made with."""
    image_folder(root / 'data')
    coco_folder(root / 'coco')
    market_folder(root / 'market')
    write_cifar(root / 'cifar')
    (root / 'teacher.py').write_text(f"default_scope = 'mmpretrain'\nmodel = {classifier(14)!r}\n")
    saved_teacher(root)
    (root / 'empty').mkdir()
    image_folder(root / 'more').joinpath('class0').rename(root / 'more/another')
    (root / 'empty.pth').touch()
    (root / 'text.pth').write_text('these are no weights')
    (root / 'text.txt').write_text('a text')
    content = (root / 'teacher.pth').read_bytes()
    (root / 'cut.pth').write_bytes(content[: len(content) // 2])
    torch.save({'state_dict': {'unknown.weight': torch.zeros(3)}}, root / 'other.pth')
    torch.save([1, 2, 3], root / 'list.pth')
    torch.save({'state_dict': {}, 'meta': {}}, root / 'nothing.pth')
    torch.save({'state_dict': {}, 'payload': _Attack()}, root / 'pickled.pth')
    torch.save({'state_dict': {'head.fc.weight': 'text'}}, root / 'texts.pth')
    save_file({'blocks.0.weight': torch.zeros(3)}, root / 'other.safetensors')
    (root / 'cut.safetensors').write_bytes((root / 'other.safetensors').read_bytes()[:-4])
    (root / 'transformer.py').write_text(TRANSFORMER)
    np.savez(root / 'features.npz', **features())
    (root / 'study').mkdir()
    write_study(root / 'study', root / 'cifar', FEW)


FEW = """
methods = {'Baseline': dict(), 'KD': dict(terms=['kd'])}
corruptions = {'clean': dict()}
seeds = [0]
"""


TRANSFORMER = """
import torch
from torch import nn


class Transformer(nn.Module):
    def __init__(self, others=0):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.others = nn.Parameter(torch.zeros(1, others, 8))
        self.patches, self.block, self.unused = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 8), nn.Identity()

    def forward(self, images):
        x = self.patches(images).flatten(2).mT
        return self.block(torch.cat([self.cls_token.expand(len(x), -1, -1), self.others.expand(len(x), -1, -1), x], 1))
"""


class _Attack:
    def __reduce__(self):
        return os.mkdir, ('executed',)


def features() -> dict[str, np.ndarray]:
    """Return good features of retrieval."""
    rng = np.random.default_rng(0)
    ids = np.arange(6) % 3 + 1
    return dict(
        query_features=rng.normal(size=(3, 8)).astype(np.float32),
        query_ids=ids[:3],
        query_cams=np.zeros(3, int),
        gallery_features=rng.normal(size=(6, 8)).astype(np.float32),
        gallery_ids=ids,
        gallery_cams=np.ones(6, int),
    )


def text_of(config: dict[str, Any]) -> str:
    """Return a config as a Python file."""
    return ''.join(f'{key} = {value!r}\n' for key, value in config.items())


def bases(root: Path) -> dict[str, str]:
    """Return the good configs."""

    def scored(config):
        loader = config.to_dict()['train_dataloader']
        loader['dataset']['pipeline'] = [step for step in loader['dataset']['pipeline'] if step['type'] != 'RandomFlip']
        loader['sampler'] = dict(type='DefaultSampler', shuffle=False)
        return dict(
            val_dataloader=loader,
            test_dataloader=loader,
            val_cfg={},
            test_cfg={},
            val_evaluator=dict(type='Accuracy', topk=(1,)),
            test_evaluator=dict(type='Accuracy', topk=(1,)),
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', interval=1), logger=dict(type='LoggerHook', interval=1)
            ),
            custom_imports=dict(imports=['kd_plugins'], allow_failed_imports=False),
            work_dir='run',
            experiment_name=None,
        )

    distillation = dict(
        teacher=dict(config=str(root / 'teacher.py'), checkpoint=str(root / 'teacher.pth')), terms=[KD, NST]
    )
    hook = dict(type='kd_plugins.DistillationHook', **distillation)
    model = dict(type='kd_plugins.Distiller', student=classifier(), input_shape=(3, 16, 16), **distillation)
    unlabelled = dict(
        teacher=dict(build=f'{root / "transformer.py"}:Transformer', data_preprocessor={}, size=40),
        terms=[NST | dict(teacher='block')],
        task='off',
    )
    classifiers = {
        'classifier': classification_config(root / 'data', 'run', epochs=1),
        'hook': classification_config(root / 'data', 'run', epochs=1, custom_hooks=[hook]),
        'distiller': classification_config(root / 'data', 'run', model=model, epochs=1),
    }
    made = {name: config.to_dict() | scored(config) for name, config in classifiers.items()}
    config = classification_config(root / 'data', 'run', epochs=1)
    config.model.head = None
    config.train_dataloader.dataset.type = 'kd_plugins.UnlabelledImages'
    config.custom_hooks = [dict(type='kd_plugins.DistillationHook', **unlabelled)]
    config.experiment_name = None
    made['unlabelled'] = config.to_dict()
    reid = reid_config(root / 'market', 'run', epochs=1)
    reid.experiment_name = None
    detector = stock_detector(root / 'coco', 'run')
    detector.experiment_name, detector.visualizer = None, dict(type='Visualizer')
    detector.default_hooks.checkpoint = None
    detector.model.bbox_head.num_classes = 1
    detector.custom_imports = dict(imports=['kd_plugins'])
    made |= dict(reid=reid.to_dict(), detector=detector.to_dict())
    plain = {name: text_of(config) for name, config in made.items()}
    study = (root / 'study/tiny.py').read_text().replace("'net.py'", repr(str(root / 'study/net.py')))
    return plain | dict(study=study, none='')


# ---- the mistakes ----------------------------------------------------------------------------------------------------


def mistakes() -> Iterator[Mistake]:
    """Yield all mistakes, kind by kind."""
    for kind, function in KINDS.items():
        for mistake in function():
            mistake.kind = kind
            yield mistake


def representatives() -> list[Mistake]:
    """Return one mistake of each kind that needs no trained run and no detector."""
    found = {}
    for mistake in mistakes():
        text = ' '.join(map(str, (mistake.change, *mistake.arguments)))
        if mistake.base != 'detector' and '/run/' not in text and 'cfg.py' not in text and not mistake.ascii:
            found.setdefault(mistake.kind, mistake)
    return list(found.values())


def edit(base: str, change: str, *words: str, **more: Any) -> Mistake:
    """Return the mistake of a line at the end of a config."""
    return Mistake('', base, change, words, **more)


def line(tool: str, arguments: str | Sequence[Any], *words: str, **more: Any) -> Mistake:
    """Return the mistake of a command line."""
    arguments = arguments.split() if isinstance(arguments, str) else arguments
    return Mistake('', more.pop('base', 'none'), '', words, arguments, tool, config=more.pop('config', None), **more)


def file(name: str, content: str | bytes) -> Prepare:
    """Write a file in the run's folder."""

    def write(folder: Path, assets: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.replace('ASSETS', str(assets)).encode())

    return described(f'{name}: {content!r:.40}', write)


def written(content: str | bytes) -> Prepare:
    """Write other content than a good config's."""
    return file('cfg.py', content)


def config_files() -> Iterator[Mistake]:
    for content, *words in (
        ('', 'model|empty'),
        ('# to do\n', 'model|empty'),
        ('model = dict(\n', 'cfg.py', 'SyntaxError'),
        ('model = dict()\n  x = 1\n', 'cfg.py', 'Indent'),
        ('model = resnet\n', 'cfg.py', 'resnet'),
        ('model = 1 / 0\n', 'cfg.py', 'ZeroDivision'),
        ('import nosuch_module\nmodel = nosuch_module.model\n', 'cfg.py', 'nosuch_module'),
        ('from nosuch.module import model\nmodel.depth = 5\n', 'cfg.py', 'nosuch'),
        ("_base_ = 'nosuch.py'\n", 'cfg.py', 'nosuch.py'),
        ("_base_ = ['ASSETS/teacher.py', 'b.py']\n", 'b.py'),
        ('_base_ = 5\n', 'cfg.py', '_base_'),
        ("_base_ = './cfg.py'\n", 'cfg.py', '_base_|itself|recursion'),
        ("_base_ = 'mmpretrain::resnet/nosuch.py'\n", 'nosuch.py'),
        ("_base_ = 'nosuch::a.py'\n", 'nosuch'),
        ("_base_ = ['ASSETS/teacher.py', 'ASSETS/teacher.py']\n", 'cfg.py', 'duplicate'),
        ("_base_ = 'ASSETS/teacher.py'\nmodel = dict(head={{_base_.nosuch}})\n", 'nosuch'),
        ("_base_ = 'ASSETS/teacher.py'\nmodel = dict(head=dict(in_channels=dict(a=1)))\n", 'in_channels'),
        ('model = dict(type="é")\n'.encode('latin-1'), 'cfg.py', 'utf-8'),
        (b'\x00\x01\x02\xff\xfe', 'cfg.py'),
        (b'\xff\xfem\x00o\x00d\x00', 'cfg.py', 'utf-8'),
        ('model: dict\n  backbone: 5\n', 'cfg.py', 'Syntax|Indent'),
        ('{"model": null,}', 'cfg.py', 'null'),
        ("filename = 'x'\nmodel = dict()\n", 'filename'),
        ("raise RuntimeError('stop')\n", 'cfg.py', 'stop'),
        ("assert False, 'set the data root'\n", 'cfg.py', 'set the data root'),
        ("open('nosuch.txt')\n", 'cfg.py', 'nosuch.txt'),
        ("import os\nroot = os.environ['NOSUCH_ROOT']\n", 'cfg.py', 'NOSUCH_ROOT'),
        ('import sys\nsys.exit(0)\n', 'cfg.py', 'exit'),
        ('from mmengine.config import read_base\nwith read_base():\n    from .nosuch import *\n', 'nosuch'),
    ):
        yield edit('none', '', *words, prepare=written(content))
    for imports, word in (
        ("dict(imports=['nosuch_module'])", 'nosuch_module'),
        ("'nosuch_module'", 'custom_imports'),
        ("['kd_plugins']", 'custom_imports'),
        ('dict(imports=5)', 'custom_imports|imports'),
        ("dict(import_='kd_plugins')", 'custom_imports|import_'),
    ):
        yield edit('classifier', f'custom_imports = {imports}', word)
    yield edit(
        'classifier',
        "custom_imports = dict(imports=['broken'])",
        'broken',
        prepare=file('broken.py', 'import nosuch_module\n'),
        environment=dict(PYTHONPATH='.'),
    )
    yield line('train', 'ASSETS/empty', 'ASSETS/empty|folder')
    yield line('train', 'ASSETS/teacher.pth', 'teacher.pth')
    yield line('train', 'ASSETS/text.txt', 'text.txt')
    yield line('train', 'nosuch.py', 'nosuch.py', 'exist')
    yield line('train', '', 'config')
    yield line('train', 'a.py --resme', 'resme')
    yield line('train', 'ASSETS/study/tiny.py', 'study')
    yield line('train', 'bad.json', 'bad.json', prepare=file('bad.json', '{"model": '))
    yield line('train', 'bad.yaml', 'bad.yaml', prepare=file('bad.yaml', 'model: [1, 2'))
    yield line('train', 'cfg.txt', 'cfg.txt', prepare=file('cfg.txt', 'model = dict()'))


def parts() -> Iterator[Mistake]:
    for base, names in dict(
        classifier=('model', 'train_dataloader', 'optim_wrapper', 'train_cfg'),
        detector=('model', 'train_dataloader'),
        hook=('model', 'train_dataloader', 'optim_wrapper', 'train_cfg'),
        reid=('model', 'optim_wrapper', 'train_cfg'),
    ).items():
        for name in names:
            yield edit(base, f'del {name}', name)
    for name in ('model', 'train_dataloader', 'optim_wrapper', 'train_cfg', 'default_hooks'):
        for value in ('None', "'text'", '5'):
            if (name, value) != ('default_hooks', 'None'):
                yield edit('classifier', f'{name} = {value}', name)
    yield edit('classifier', 'train_dataloader = []', 'train_dataloader')
    yield edit('classifier', 'model = []', 'model')
    for change, *words in (
        ("del train_dataloader['dataset']", 'dataset'),
        ("del train_dataloader['batch_size']", 'batch_size'),
        ("train_dataloader['dataset'] = None", 'dataset'),
        ("train_dataloader['dataset'] = 'data'", 'dataset'),
        ("del train_dataloader['dataset']['type']", 'type'),
        ("del optim_wrapper['optimizer']", 'optimizer'),
        ("optim_wrapper['optimizer'] = 'SGD'", 'optimizer'),
        ("del optim_wrapper['optimizer']['type']", 'type'),
        ("optim_wrapper['optimizer'] = None", 'optimizer'),
        ("del model['type']", 'type'),
        ("del model['backbone']", 'backbone'),
        ("model['backbone'] = None", 'backbone'),
        ("del model['backbone']['type']", 'type'),
        ("del model['head']['type']", 'type'),
        ("del model['head']", 'head'),
        ("del model['head']['in_channels']", 'in_channels'),
        ("del model['head']['num_classes']", 'num_classes'),
        ("model['backbone'] = 'resnet18'", 'backbone|resnet18'),
        ("del train_cfg['max_epochs']", 'max_epochs'),
        ('train_cfg = dict(by_epoch=False)', 'max_iters'),
        ("train_cfg = dict(type='IterBasedTrainLoop')", 'max_iters'),
        ('train_cfg = {}', 'max_epochs|by_epoch|type'),
        ('del val_cfg', 'val_cfg'),
        ('del val_evaluator', 'val_evaluator'),
        ('del val_dataloader', 'val_dataloader'),
        ('val_evaluator = {}', 'val_evaluator|type'),
        ("val_evaluator = 'Accuracy'", 'val_evaluator'),
        ('param_scheduler = [dict(milestones=[1])]', 'type'),
        ("param_scheduler = 'MultiStepLR'", 'param_scheduler'),
        ('param_scheduler = [dict(type="MultiStepLR")]', 'milestones'),
        ('param_scheduler = 5', 'param_scheduler'),
        ('custom_hooks = [dict(interval=1)]', 'type'),
        ("custom_hooks = 'EMAHook'", 'custom_hooks'),
        ("custom_hooks = dict(type='EMAHook')", 'custom_hooks'),
        ('custom_hooks = [None]', 'custom_hooks'),
        ("train_dataloader['dataset']['pipeline'] = [dict(scale=3)]", 'type'),
        ("train_dataloader['sampler'] = {}", 'sampler|type'),
        ('default_scope = None', 'scope|registry|ImageClassifier'),
        ("del model['neck']", 'head|neck'),
        ('randomness = 5', 'randomness'),
        ("env_cfg = 'x'", 'env_cfg'),
    ):
        yield edit('classifier', change, *words)
    for part in ('backbone', 'bbox_head', 'neck'):
        yield edit('detector', f"del model['{part}']", part)
    for part in ('student', 'teacher', 'terms'):
        yield edit('distiller', f"del model['{part}']", part)
    for part in ('teacher', 'terms'):
        yield edit('hook', f"del custom_hooks[0]['{part}']", part)


NUMBERS = {
    "train_dataloader['batch_size']": ('0', '-1', '2.5', "'eight'", 'None', "float('nan')"),
    "val_dataloader['batch_size']": ('0', "'eight'"),
    "train_dataloader['num_workers']": ('-1', '1.5', "'two'", 'None'),
    "train_cfg['max_epochs']": ('0', '-1', '1.5', "'ten'", 'None', "float('nan')"),
    "train_cfg['val_interval']": ('0', '-1', '0.5', "'one'", 'None'),
    "train_cfg['val_begin']": ("'two'",),
    "optim_wrapper['optimizer']['lr']": ('-0.1', "'fast'", "float('nan')", "float('inf')", 'None', '[0.1]'),
    "optim_wrapper['optimizer']['momentum']": ('-1', "'x'", "float('nan')"),
    "optim_wrapper['optimizer']['weight_decay']": ('-1', "'x'", "float('nan')"),
    "optim_wrapper['accumulative_counts']": ('0', '-1', "'two'", '1.5'),
    "optim_wrapper['clip_grad']": ('dict()', '5', "dict(max_norm='x')"),
    "randomness['seed']": ('-1', "'x'", '1.5', '2**70', "float('nan')"),
    "default_hooks['checkpoint']['interval']": ('0', "'one'", '1.5', 'None'),
    "default_hooks['checkpoint']['max_keep_ckpts']": ("'two'", '0'),
    "default_hooks['logger']['interval']": ('0', "'ten'", '-1'),
    "param_scheduler[0]['milestones']": ("'1'", '1', "['one']"),
    "param_scheduler[0]['gamma']": ("'x'", "float('nan')", 'None'),
    "model['head']['num_classes']": ('0', '-1', "'four'", '2.5', 'None'),
    "model['head']['in_channels']": ('0', '-1', "'x'", '5', 'None'),
    "model['head']['topk']": ('(10,)', "'x'"),
    "model['backbone']['depth']": ('7', "'x'", '-8', 'None'),
    "model['backbone']['width']": ('0', '-4', "'x'"),
    "model['data_preprocessor']['mean']": ('[1.0, 2.0]', "'x'", "[float('nan')] * 3", '[None] * 3'),
    "model['data_preprocessor']['std']": ('[0.0] * 3', "'x'", "[float('nan')] * 3"),
    "train_dataloader['dataset']['pipeline'][1]['prob']": ('2', '-1', "'x'", 'None'),
    "train_dataloader['dataset']['indices']": ('0', "'x'", '[99]'),
    "train_dataloader['prefetch_factor']": ('0', "'x'"),
    "train_dataloader['persistent_workers']": ('True',),
}


def numbers() -> Iterator[Mistake]:
    for field_, values in NUMBERS.items():
        name = re.findall(r"'(\w+)'", field_)[-1]
        for value in values:
            yield edit('classifier', f'{field_} = {value}', f'{name}|learning rate' if name == 'lr' else name)
    for field_, values in {
        "train_dataloader['batch_size']": ('5', '0'),
        "train_dataloader['sampler']['identities']": ('0', '-1', '99', "'x'"),
        "train_dataloader['sampler']['instances']": ('1', '0', "'x'"),
        "model['head']['in_channels']": ('0',),
    }.items():
        name = re.findall(r"'(\w+)'", field_)[-1]
        for value in values:
            yield edit('reid', f'{field_} = {value}', name)
    for change, *words in (
        ("train_dataloader['batch_size'] = -2", 'batch_size'),
        ("train_dataloader['batch_size'] = 'x'", 'batch_size'),
        ("optim_wrapper['optimizer']['lr'] = 'x'", 'lr|learning rate'),
        ("train_dataloader['dataset']['pipeline'][2]['scale'] = (0, 0)", 'Resize|scale'),
        ("train_dataloader['dataset']['pipeline'][2]['scale'] = 'x'", 'Resize|scale'),
        ("train_dataloader['dataset']['pipeline'][2]['scale'] = (-64, -64)", 'Resize|scale'),
        ("model['backbone']['depth'] = 19", 'depth'),
        ("model['backbone']['frozen_stages'] = 9", 'frozen_stages'),
        ("model['neck']['in_channels'] = [64, 128]", 'in_channels|neck'),
        ("model['bbox_head']['num_classes'] = 'x'", 'num_classes'),
        ("model['bbox_head']['in_channels'] = 7", 'in_channels|bbox_head'),
    ):
        yield edit('detector', change, *words)
    for value in ('-1', "'x'"):
        yield edit('classifier', f'train_cfg = dict(by_epoch=False, max_iters={value})', 'max_iters')


def class_counts() -> Iterator[Mistake]:
    yield edit('classifier', "model['head']['num_classes'] = 2", 'num_classes|classes', '4')
    yield edit('classifier', "model['head']['num_classes'] = 3", 'num_classes|classes', '4')
    yield edit('classifier', "model['head']['num_classes'] = 1", 'num_classes|classes', '4')
    yield edit('hook', "model['head']['num_classes'] = 3", 'num_classes|classes')
    yield edit('distiller', "model['student']['head']['num_classes'] = 2", 'num_classes|classes')
    yield edit('reid', "model['head']['num_classes'] = 4", 'num_classes|classes', '6')
    yield edit('reid', "model['head']['num_classes'] = 0", 'num_classes|classes')
    yield edit('detector', "model['bbox_head']['num_classes'] = 0", 'num_classes|classes')
    data = "train_dataloader['dataset']['metainfo']"
    for change, *words in (
        (f"{data} = dict(classes=('dog'))", 'classes', 'dog'),
        (f"{data} = dict(classes=('person'))", 'classes', 'person'),
        (f'{data} = dict(classes=())', 'classes'),
        (f"{data} = dict(classes=('dog',))", 'dog|no image|picture|annotation'),
        (f"{data} = dict(classes=('Person',))", 'Person|no image|picture'),
        (f'{data} = dict(classes=5)', 'classes'),
        (f"{data} = dict(classes='nosuch.txt')", 'nosuch.txt'),
        (f"{data} = 'person'", 'metainfo'),
        (
            f"{data} = dict(class_names=('person',))\nmodel['bbox_head']['num_classes'] = 1",
            'num_classes|classes|class_names',
        ),
        (f"{data} = dict(classes=('person', 'dog'))", 'num_classes|classes'),
        (f'del {data}', 'num_classes|classes'),
    ):
        yield edit('detector', change, *words)
    for change, *words in (
        ("train_dataloader['dataset']['classes'] = ('class0')", 'classes'),
        ("train_dataloader['dataset']['classes'] = ['class0', 'class1']", 'classes'),
        ("train_dataloader['dataset']['metainfo'] = dict(classes=('class0'))", 'classes'),
    ):
        yield edit('classifier', change, *words)
    yield edit(
        'classifier',
        "val_dataloader['dataset']['data_root'] = 'more'",
        'class',
        prepare=described(
            'a fifth class to score',
            lambda folder, assets: [
                shutil.copytree(assets / 'data', folder / 'more'),
                shutil.copytree(assets / 'data/class0', folder / 'more/class4'),
            ],
        ),
    )
    yield edit(
        'classifier',
        "val_dataloader['dataset']['data_root'] = 'less'",
        'class',
        prepare=described(
            'the first class is missing',
            lambda folder, assets: [
                shutil.copytree(assets / 'data', folder / 'less'),
                shutil.rmtree(folder / 'less/class0'),
            ],
        ),
    )


def teachers() -> Iterator[Mistake]:
    for base, place in (('hook', "custom_hooks[0]['teacher']"), ('distiller', "model['teacher']")):
        for value in ("'resnet34'", 'None', '5', '[]', "['resnet']", '{}', '[None]', "'ASSETS/teacher.py'"):
            yield edit(base, f'{place} = {value}', 'teacher')
        for key, value, *words in (
            ('config', "'nosuch.py'", 'nosuch.py', 'exist'),
            ('config', "'ASSETS/study/tiny.py'", 'teacher', 'model'),
            ('config', "'mmpretrain::resnet/nosuch.py'", 'nosuch.py'),
            ('config', "'nosuch::x.py'", 'nosuch'),
            ('config', 'None', 'config'),
            ('checkpoint', "'nosuch.pth'", 'nosuch.pth', 'exist'),
            ('checkpoint', "'ASSETS/text.pth'", 'text.pth'),
            ('checkpoint', "'ASSETS/other.pth'", 'other.pth', 'fit'),
            ('checkpoint', "'ASSETS/pickled.pth'", 'pickled.pth', 'allow'),
        ):
            yield edit(base, f"{place}['{key}'] = {value}", *words)
    place = "custom_hooks[0]['teacher']"
    for change, *words in (
        (f"{place}['config'] = 'mmpretrain:resnet/resnet18_8xb32_in1k.py'", 'resnet18_8xb32_in1k'),
        (f"{place}['config'] = 'ASSETS'", 'ASSETS|teacher'),
        (f"{place}['config'] = 'ASSETS/text.txt'", 'text.txt'),
        (f"{place}['config'] = 5", 'config'),
        (f"{place}['config'] = dict(depth=8)", 'type'),
        (f"{place}['config'] = {{}}", 'type|config'),
        (f"{place}['config'] = dict(type='ResNett')", 'ResNett'),
        (f"{place}['config'] = 'broken.py'", 'broken.py'),
        (f"{place}['config'] = 'empty.py'", 'empty.py', 'model'),
        (f"del {place}['config']", 'config'),
        (f"del {place}['checkpoint']", 'checkpoint'),
        (f"{place}['checkpoint'] = 5", 'checkpoint'),
        (f"{place}['checkpoint'] = 'ASSETS/empty'", 'empty'),
        (f"{place}['checkpoint'] = 'ASSETS/empty.pth'", 'empty.pth'),
        (f"{place}['checkpoint'] = ''", 'checkpoint'),
        (f"{place}['checkpoint'] = 'ASSETS/cut.pth'", 'cut.pth'),
        (f"{place}['checkpoint'] = 'ASSETS/list.pth'", 'list.pth'),
        (f"{place}['checkpoint'] = 'ASSETS/nothing.pth'", 'nothing.pth'),
        (f"{place}['checkpoint'] = 'ASSETS/texts.pth'", 'texts.pth'),
        (f"{place}['checkpoint'] = 'ASSETS/data/class0/000.png'", '000.png'),
        (f"{place}['checkpoint'] = 'ASSETS/features.npz'", 'features.npz'),
        (f"{place}['chekpoint'] = 'x'", 'chekpoint', 'checkpoint'),
        (f"{place}['data_preprocessor'] = 'x'", 'data_preprocessor'),
        (f"{place}['data_preprocessor'] = dict(mean=[1.0, 2.0], std=[1.0, 2.0])", 'mean|data_preprocessor'),
        (f"{place}['bf16'] = 'yes'", 'bf16'),
        (f"{place}['cache'] = 5", 'cache'),
        (f"{place}['cache'] = 'ASSETS/text.txt'", 'text.txt'),
        (f"{place} = [{place}, {place}]\nfor t in custom_hooks[0]['terms']: t['teachers'] = [0]", 'teacher 1'),
        (f"{place} = [{place}, dict(config='nosuch.py')]", 'nosuch.py|checkpoint'),
        (f"{place} = dict(model={place}['config'], checkpoint={place}['checkpoint'])", "'model'"),
        (f"{place} = ({place},)\ncustom_hooks[0]['terms'][0]['teachers'] = [1]", 'teachers', 'kd'),
    ):
        yield edit(
            'hook',
            change,
            *words,
            prepare=described(
                '',
                lambda folder, assets: [
                    (folder / 'broken.py').write_text('model = dict('),
                    (folder / 'empty.py').write_text('x = 1\n'),
                ],
            ),
        )


_NO_PICTURE = described(
    'every picture is a text',
    lambda folder, assets: [
        shutil.copytree(assets / 'data', folder / 'mine'),
        [path.write_text('no picture') for path in (folder / 'mine').glob('*/*')],
    ],
)
_NETWORK = "dict(function='ASSETS/transformer.py:Transformer', others=3)"


def any_teacher() -> Iterator[Mistake]:
    teacher, term = "custom_hooks[0]['teacher']", "custom_hooks[0]['terms'][0]"
    data = "train_dataloader['dataset']['data_root']"
    for change, *words in (
        (f"{data} = 'ASSETS/empty'", 'ASSETS/empty', 'no image'),
        (f"{term}['teacher'] = 'layer4'", "'layer4'", 'nearest names', 'block'),
        (f"{term}['teacher'] = 'unused'", "'unused'", 'no tensor'),
        (f"{term}['student'] = 'neck'", 'nst', 'neck (2, 16)', 'maps'),
        (f"{teacher}['build'] = {_NETWORK}", '29 tokens', 'teacher_tokens=dict(prefix=4, size=(5, 5))'),
        (f"{teacher}['size'] = 36", '36 x 36', '8 x 8', 'size=('),
        (f"{teacher}['checkpoint'] = 'ASSETS/other.safetensors'", 'other.safetensors', 'Transformer', 'fit'),
    ):
        yield edit('unlabelled', change, *words)
    yield edit('unlabelled', f"{data} = 'mine'", '000.png', 'skip-corrupt', prepare=_NO_PICTURE)
    for source, *words in (
        ("timm='vit_tiny_patch16_224'", 'https://huggingface.co/timm/vit_tiny_patch16_224', 'checkpoint='),
        ("huggingface='nosuch/vit'", 'nosuch/vit', 'config.json', 'folder'),
    ):
        yield edit('unlabelled', f'{teacher} = dict({source})', *words)


def without_labels() -> Iterator[Mistake]:
    data, loader = "train_dataloader['dataset']", 'train_dataloader'
    images = "dict(type='kd_plugins.UnlabelledImages', pipeline=train_dataloader['dataset']['pipeline'], "
    labelled = "dict(train_dataloader['dataset'], type='CustomDataset')"
    knn = f"custom_hooks.append(dict(dict(type='kd_plugins.KNNHook', bank={labelled}, queries={labelled}), "
    resized = f"{loader}['dataset'] = dict(dict(type='kd_plugins.ResizedImages', edge=12, cache='c', dataset={data}), "
    for change, *words in (
        (f"{data}['data_root'] = 'nosuch'", 'nosuch', 'no such folder', 'data_root'),
        (f"{data}['data_prefix'] = ['class0', 'nosuch']", 'nosuch', 'no such folder'),
        (f"{data}['data_rot'] = 'x'", 'data_rot'),
        (f"{loader}['dataset'] = {images[:-2]})", 'no images are named', 'data_root'),
        (f"{data}['ann_file'] = 'nosuch.txt'", 'nosuch.txt', 'no such list'),
        (f"{data}['ann_file'] = 'ASSETS/text.txt'", 'a text', 'missing'),
        (f"{data}['ann_file'] = 'ASSETS/features.npz'", 'features.npz', 'path of an image in each line'),
        (f"{loader}['dataset'] = {images} dataset=dict(type='nosuch.Set'))", 'nosuch.Set'),
        (
            f"{loader}['dataset'] = {images} dataset=dict(type='CustomDataset', data_root='ASSETS/empty'))",
            'ASSETS/empty',
        ),
        (f"{loader}['dataset'] = {images} dataset={labelled}, data_prefix='nosuch')", 'nosuch', 'no such folder'),
        (f'{knn} k=0))', 'k=0', 'at least 1'),
        (f'{knn} neighbours=3))', 'neighbours'),
        (f"{knn} student='backbon'))", 'backbon', 'nearest names: backbone'),
        (f"{knn} teacher='nosuch'))", 'nosuch', 'nearest names'),
        (f"{knn} token='cls'))", 'cls', "'mean' or 'class'"),
        (f'{knn} bank={data}))', 'bank', 'gt_label'),
        (f"{knn} queries=dict({labelled}, data_root='nosuch')))", 'nosuch'),
        (f"{knn} queries=dict({labelled}, data_root='ASSETS/more')))", 'classes', 'class0', 'bank'),
        (f'{resized} edge=0)', 'edge=0', 'shorter side'),
        (f'{resized} size=12)', 'size'),
        (f"{resized} dataset=dict({data}, pipeline=[dict(type='PackInputs')]))", 'PackInputs', 'kd_plugins.LoadImage'),
        (f"{resized} cache='ASSETS/text.txt')", 'ASSETS/text.txt', 'expected a folder'),
    ):
        yield edit('unlabelled', change, *words)
    yield edit(
        'unlabelled', f"{resized} dataset=dict({data}, data_root='mine'))", '000.png', 'skip', prepare=_NO_PICTURE
    )


_ABSENT = "__import__('sys').modules.update"  # of packages that are not installed


def sources() -> Iterator[Mistake]:
    hook, data = 'custom_hooks[0]', "train_dataloader['dataset']"
    teacher, term = f"{hook}['teacher']", f"{hook}['terms'][0]"
    for change, *words in (
        (f"{teacher}['build'] = 'nosuch.py:network'", 'nosuch.py', 'exist'),
        (f"{teacher}['build'] = 'ASSETS/transformer.py:Transfomer'", 'Transfomer', 'Transformer'),
        (f"{teacher}['build'] = 'ASSETS/transformer.py'", 'build', ':function'),
        (f"{teacher}['build'] = dict(function='ASSETS/transformer.py:Transformer', other=3)", 'other', 'others'),
        (f"{teacher}['build'] = 'os:getcwd'", 'os:getcwd', 'nn.Module'),
        (f"{teacher}['timm'] = 'resnet18'", 'exactly one', 'build', 'timm'),
        (f'{teacher} = dict(checkpoint=None)', 'exactly one'),
        (f"{teacher} = dict(timm='vit_tinny_patch16_224')", 'vit_tinny', 'vit_tiny_patch16_224'),
        (f"{teacher} = dict(torchvision='resnet17')", 'resnet17', 'resnet18'),
        (f"{teacher} = dict(torchvision='resnet18', weights='V1')", 'V1', 'IMAGENET1K_V1'),
        (f"{teacher}['weights'] = None", 'weights', 'checkpoint'),
        (f"{teacher}['checkpoint'] = 'nosuch.safetensors'", 'nosuch.safetensors', 'exist'),
        (f"{teacher}['checkpoint'] = 'text.safetensors'", 'text.safetensors'),
        (f"{teacher}['revise_keys'] = 'backbone'", 'revise_keys'),
        (f"{teacher}['checkpoint'], {teacher}['revise_keys'] = 'ASSETS/other.pth', [('(', '')]", 'revise_keys'),
        (f"{teacher}['size'] = '18'", 'size', "'18'"),
        (f"{teacher}['size'] = 0", 'size', '0'),
        (f"{term}['loss'] = dict(type='kd_plugins.CosineLoss')", 'channels', 'adapter'),
        (f"{term}['loss'] = dict(type='kd_plugins.KDLoss')", 'nst', 'logits'),
        (f"{term}['teacher_tokens'] = dict(size=(6, 6))", 'teacher_tokens', '26 tokens'),
        (f"{term}['teacher_tokens'] = dict(prefix=-1)", 'prefix', '-1'),
        (f"{term}['teacher_tokens'] = dict(take='class')", 'take', "'cls'"),
        (f"{term}['teacher_tokens'] = (5, 5)", 'teacher_tokens', 'dict'),
        (f"{term}['tokens'] = dict(prefix=1)", 'tokens'),
        (f"{term}['student_tokens'] = dict(prefix=1)", 'student_tokens', '(2, 16, 4, 4)'),
        (f"{term}['resize'] = 'larger'", 'resize', 'larger', 'smaller'),
        (f"{term}['adapter'] = 'mpl'", 'adapter', "'mlp'"),
        (f"{hook}['task'] = 'of'", 'task', "'off'"),
        (f"{hook}['task'] = 'train'", 'head', "task='off'"),
        (f"{term}['weight'] = 0.0", 'weight', '0'),
        ("model = dict(type='mmpretrain.ResNet', depth=18)", 'ImageClassifier'),
        (f"{data}['data_root'] = 'nosuch'", 'nosuch', 'folder'),
        (f"{data}['data_root'] = ''", 'data_root'),
        (f"{data}['data_root'] = ''\n{data}['data_prefix'] = ['ASSETS/data', 'ASSETS/empty']", 'ASSETS/empty'),
        (f"{data}['data_root'] = ''\n{data}['ann_file'] = 'list.txt'", 'list.txt', 'empty'),
        (f"{data}['data_root'] = ''\n{data}['dataset'] = dict(type='CustomDatast')", 'CustomDatast'),
    ):
        prepare = lambda folder, assets: [  # noqa: E731
            (folder / 'text.safetensors').write_text('these are no weights'),
            (folder / 'list.txt').touch(),
        ]
        yield edit('unlabelled', change, *words, prepare=described('', prepare))
    yield edit(
        'unlabelled',
        f"{data}['data_root'] = 'mine'",
        'none of the 24',
        arguments=['--skip-corrupt'],
        prepare=_NO_PICTURE,
    )
    place, vit = "custom_hooks[0]['teacher']", "timm='test_vit.r160_in1k'"
    for options, *words in (
        ("timm='vit_small_patch14_dinov2.lvd142'", 'vit_small_patch14_dinov2.lvd142m'),
        ('timm=18', 'timm', '18'),
        ("timn='resnet18'", 'timn', 'timm'),
        (f"{vit}, checkpoint='ASSETS/other.safetensors'", 'other.safetensors', 'fit'),
        (f"{vit}, checkpoint='ASSETS/cut.safetensors'", 'cut.safetensors', 'truncated|damaged'),
        (f"{vit}, checkpoint='ASSETS/pickled.pth'", 'pickled.pth', 'allow'),
        (f"{vit}, weights='IMAGENET1K_V2'", 'weights', 'IMAGENET1K_V2'),
        (f"{vit}, weights=None, revise_keys=[('a', 'b')]", 'revise_keys', 'checkpoint'),
        (f'{vit}, weights=None', 'head.fc', 'head'),
        ("torchvision='resnet18', checkpoint='ASSETS/teacher.pth'", 'teacher.pth', 'fit'),
        (f"huggingface='nosuch/vit')\n{_ABSENT}(transformers=None", 'transformers', 'huggingface', 'pip install'),
        (f"timm='resnet18')\n{_ABSENT}(timm=None", 'timm', 'pip install'),
        ("huggingface='ASSETS/empty'", 'ASSETS/empty', 'config.json'),
        ("huggingface='ASSETS/text.txt'", 'text.txt', 'folder'),
        ("build='nosuch_module:build'", 'nosuch_module'),
        ("build=dict(function='torchvision.models:ResNet')", 'block|layers'),
        ("build='collections:OrderedDict'", 'OrderedDict', 'nn.Module'),
    ):
        yield edit('hook', f'{place} = dict({options})', *words)
    yield edit(
        'hook',
        f"{place} = dict(torchvision='resnet18')",
        'https://download.pytorch.org/models/resnet18-',
        'checkpoint=',
        environment=dict(https_proxy='http://127.0.0.1:9', TORCH_HOME='home'),  # no network
    )
    for arguments, *words in (
        ('taps nosuch.py', 'nosuch.py', 'exist'),
        ('taps ASSETS/teacher.py --filter stage9', 'stage9', 'stage3'),
        ('taps ASSETS/teacher.py --depth 0', 'depth'),
        ('taps ASSETS/teacher.py --input 3 224', 'input'),
        ('taps ASSETS/teacher.py --input 5 16 16', 'input', '5'),
        ('taps ASSETS/teacher.py --json ASSETS/text.txt/x.json', 'text.txt'),
    ):
        yield line('visualize', arguments, *words)


def terms() -> Iterator[Mistake]:
    for base, place in (('hook', "custom_hooks[0]['terms']"), ('distiller', "model['terms']")):
        for value in ("dict(name='kd')", 'None', "'kd'", '5', '[]', '[None]', "['kd']", '[[]]', 'dict(kd=dict())'):
            yield edit(base, f'{place} = {value}', 'term')
    place = "custom_hooks[0]['terms'][0]"
    for key in ('name', 'loss', 'student', 'teacher'):
        yield edit('hook', f"del {place}['{key}']", key, 'term')
    for key, value, *words in (
        ('name', 'None', 'name'),
        ('name', '5', 'name'),
        ('name', "''", 'name'),
        ('name', "'nst'", 'nst'),
        ('loss', "'KDLoss'", 'loss', 'type'),
        ('loss', 'None', 'loss', 'type'),
        ('loss', 'dict(tau=4.0)', 'type'),
        ('loss', "dict(type='kd_plugins.KLLoss')", 'KLLoss', 'KDLoss'),
        ('loss', "dict(type='KDLos')", 'KDLos', 'KDLoss'),
        ('loss', 'dict(type=None)', 'loss'),
        ('loss', "dict(type='kd_plugins.KDLoss', temperature=4.0)", 'temperature', 'tau'),
        ('loss', "dict(type='kd_plugins.KDLoss', tau=0)", 'tau', '0'),
        ('loss', "dict(type='kd_plugins.KDLoss', tau=-2)", 'tau', '-2'),
        ('loss', "dict(type='kd_plugins.KDLoss', tau='4')", 'tau'),
        ('loss', "dict(type='kd_plugins.KDLoss', standardize=True, use_sigmoid=True)", 'standardize', 'use_sigmoid'),
        ('loss', "dict(type='kd_plugins.KDLoss', tau=None)", 'tau'),
        ('loss', "dict(type='kd_plugins.KDLoss', tau=float('nan'))", 'tau'),
        ('loss', "dict(type='kd_plugins.NSTLoss', kernel='quadratic')", 'kernel', 'quadratic'),
        ('loss', "dict(type='kd_plugins.NSTLoss', kernel=None)", 'kernel'),
        ('loss', "dict(type='kd_plugins.ATLoss', p=0)", 'p', '0'),
        ('loss', "dict(type='kd_plugins.ATLoss', convention='own')", 'own'),
        ('loss', "dict(type='kd_plugins.RKDLoss', distance_weight=-1)", 'distance_weight'),
        ('loss', "dict(type='kd_plugins.RKDLoss', distance_weight='x')", 'distance_weight'),
        ('loss', "dict(type='kd_plugins.FitNetLoss', reduction='x')", 'reduction'),
        ('loss', "dict(type='kd_plugins.FSPLoss')", 'FSPLoss', 'two'),
        ('loss', "dict(type='kd_plugins.BSSLoss', steps=0)", 'steps'),
        ('loss', "dict(type='kd_plugins.VIDLoss', variance=0)", 'variance'),
        ('loss', "dict(type='kd_plugins.CRDLoss', momentum=1)", 'momentum', '1'),
        ('loss', "dict(type='kd_plugins.CRDLoss', exclude='label')", 'exclude', 'class'),
        ('loss', "dict(type='kd_plugins.CRDLoss', num_samples=2)", 'num_samples=2', 'training set'),
        ('loss', "dict(type='CrossEntropyLoss')", 'CrossEntropyLoss|kd'),
        ('loss', "dict(type='SGD')", 'SGD'),
        ('student', "'backbone.stage9'", 'stage9', 'stage3'),
        ('student', "'fc'", "'fc'", 'head.fc'),
        ('student', 'None', 'student'),
        ('student', '5', 'student'),
        ('student', '[]', 'student|tap'),
        ('student', "''", 'student|tap'),
        ('student', "['head.fc', 'backbone']", 'kd'),
        ('student', '[None]', 'student|tap'),
        ('student', "'head.loss_module'", 'head.loss_module'),
        ('student', "'teacher.head.fc'", 'teacher.head.fc'),
        ('student', "'backbone.stage1'", 'kd', 'backbone.stage1'),
        ('student', "dict(tap='head.fc')", 'student'),
        ('teacher', "'backbone.layer3'", 'layer3', 'stage3'),
        ('teacher', 'None', 'teacher'),
        ('teacher', '[]', 'teacher|tap'),
        ('teacher', "'neck'", 'kd', 'neck'),
        ('teacher', "'backbone.stage2'", 'kd'),
        ('weight', "'x'", 'weight'),
        ('weight', 'None', 'weight'),
        ('weight', "float('nan')", 'weight|kd'),
        ('weight', "float('inf')", 'weight|kd'),
        ('weight', '[1.0]', 'weight'),
        ('weight', '{}', 'weight'),
        ('weight', 'dict(at=[0, 1], value=[1.0])', 'weight|at'),
        ('weight', 'dict(at=[1, 0], value=[1.0, 2.0])', 'at'),
        ('weight', 'dict(at=[], value=[])', 'at'),
        ('weight', "dict(at=[0], value=['x'])", 'value'),
        ('weight', "dict(at=[0], value=[1.0], by='minute')", 'minute'),
        ('weight', 'dict(at=0, value=1.0)', 'at'),
        ('weight', 'dict(at=[0], values=[1.0])', 'values'),
        ('weight', "dict(at=[0], value=[float('nan')])", 'value|weight|kd'),
        ('adapter', "'conv'", 'adapter'),
        ('adapter', "'abf'", 'kd', 'several levels', 'neck.gap'),
        ('student_levels', '[1]', 'student_levels', '1 level', 'from 0 to 0'),
        ('teacher_levels', '[]', 'teacher_levels', 'from 0'),
        ('loss', "dict(type='kd_plugins.MGDLoss', share=1.0)", 'share', 'below 1'),
        ('loss', "dict(type='kd_plugins.PKDLoss')", 'kd', 'maps'),
        ('adapter', '5', 'adapter'),
        ('adapter', 'dict(in_channels=4)', 'adapter', 'type'),
        ('adapter', "dict(type='Nosuch')", 'adapter', 'Nosuch'),
        ('adapter', "dict(type='Linear', in_features=99, out_features=4)", 'kd'),
        ('adapter', '[]', 'adapter'),
        ('adapter', 'True', 'adapter'),
        ('resize', "'larger'", 'resize', 'smaller'),
        ('resize', 'None', 'resize'),
        ('resize', "'teacher'", 'resize', 'maps'),
        ('teacher_tokens', '5', 'teacher_tokens'),
        ('teacher_tokens', 'dict(prefx=1)', 'prefx', 'prefix'),
        ('teacher_tokens', 'dict(prefix=-1)', 'prefix'),
        ('teacher_tokens', 'dict(size=16)', 'size'),
        ('student_tokens', "dict(take='class')", 'take', 'cls'),
        ('student_tokens', "dict(take='cls')", 'head.fc', 'student_tokens'),
        ('teachers', '5', 'teachers'),
        ('teachers', '[3]', 'teachers'),
        ('teachers', '[]', 'teachers'),
        ('teachers', "['a']", 'teachers'),
        ('teachers', '[0, 0]', 'teachers'),
        ('wieght', '2.0', 'wieght', 'weight'),
        ('loss_weight', '2.0', 'loss_weight'),
    ):
        yield edit('hook', f"{place}['{key}'] = {value}", *words)
    vit = (  # 1 + 4 x 4 tokens
        "custom_hooks[0]['teacher'] = dict(checkpoint=None, config=dict(type='mmpretrain.VisionTransformer', img_size=16,"
        'patch_size=4, arch=dict(embed_dims=8, num_layers=1, num_heads=1, feedforward_channels=8)))\n'
        "custom_hooks[0]['terms'] = [dict(name='nst', loss=dict(type='kd_plugins.NSTLoss'), student='backbone.stage2', "
        "teacher='layers.0')]\n"
    )
    for change, *words in (
        ('teacher_tokens=dict(prefix=3)', 'layers.0', 'grid', 'teacher_tokens=dict(prefix=1, size=(4, 4))'),
        ('teacher_tokens=dict(size=(4, 5))', 'layers.0', '17 tokens'),
        ("teacher_tokens=dict(take='cls')", 'nst', 'maps'),
    ):
        yield edit('hook', f'{vit}{place}.update({change})', *words)
    place = 'custom_hooks[0]'
    for key, value in (
        ('task', "'no'"),
        ('term', '[]'),
        ('input_shape', '(3, 16, 16)'),
        ('tsak', 'False'),
        ('task', 'None'),
    ):
        yield edit('hook', f"{place}['{key}'] = {value}", key)
    for value in ('(3,)', "'x'", '(1, 16, 16)', '(3, 0, 0)', '5', '(3, -1, 16)'):
        yield edit('distiller', f"model['input_shape'] = {value}", 'input_shape')
    yield edit('distiller', "model['task'] = 'no'", 'task')
    yield edit('distiller', "model['student'] = 'resnet18'", 'student')
    yield edit('distiller', "model['student'] = None", 'student')
    yield edit('distiller', "model['students'] = 5", 'students')
    yield edit(
        'hook',
        f"{place}['terms'][0]['name'] = 'accuracy'\nmodel['head']['cal_acc'] = True\n{place}['task'] = False\n"
        f"{place}['terms'][0]['weight'] = {place}['terms'][1]['weight'] = 0",
        'weight|task',
    )
    yield edit(
        'hook',
        f"{place}['terms'][0].update(loss=dict(type='kd_plugins.FitNetLoss'), student='backbone.stage1', "
        "teacher='backbone.stage2')",
        'FitNetLoss',
        'adapter',
    )
    yield edit(
        'hook',
        f"{place}['terms'][0].update(loss=dict(type='kd_plugins.FSPLoss'), student=['backbone.stage1', "
        "'backbone.stage2'], teacher='backbone.stage2')",
        'FSPLoss|kd',
        'two|taps',
    )


def labels() -> Iterator[Mistake]:
    """Labels that a loss needs, as DKD does."""
    hook, data = 'custom_hooks[0]', "train_dataloader['dataset']"
    dkd = f"{hook}['terms'][0]['loss'] = dict(type='kd_plugins.DKDLoss')\n"
    images = dict(
        metainfo=dict(classes=[f'class{i}' for i in range(4)]),
        data_list=[dict(img_path='ASSETS/data/class0/000.png', gt_label=[0, 2])] * 16,
    )
    several = file('many.json', json.dumps(images))
    listed = (
        f"train_dataloader['dataset'] = dict(type='MultiLabelDataset', data_root='.', pipeline={data}['pipeline'], "
    )
    for change, *words in (
        ("model['train_cfg'] = dict(augments=dict(type='Mixup', alpha=0.8))", 'DKDLoss', 'Mixup', 'gt_score'),
        ("model['train_cfg'] = dict(augments=[dict(type='CutMix', alpha=1.0)])", 'DKDLoss', 'CutMix', 'gt_score'),
        (
            f"{hook}['terms'][0]['weight'] = dict(at=[0, 1], value=[0, 1])\n"
            "model['train_cfg'] = dict(augments=dict(type='Mixup', alpha=0.8))",
            'DKDLoss',
            'Mixup',
        ),
        (f"{hook}['task'], {data}['with_label'] = 'off', False", 'DKDLoss', 'gt_label'),
        (
            f"{hook}['task'] = 'off'\ntrain_dataloader['dataset'] = dict(type='kd_plugins.UnlabelledImages', "
            f"data_root='ASSETS/data', pipeline={data}['pipeline'])",
            'DKDLoss',
            'gt_label',
        ),
        (f"{hook}['terms'][0]['student'] = {hook}['terms'][0]['teacher'] = 'backbone.stage3'", 'DKDLoss', 'head.fc'),
        (f"{hook}['terms'][0]['loss']['tau'] = 0", 'tau'),
        (f"{hook}['terms'][0]['loss']['temperature'] = 4", 'temperature'),
        (f"{hook}['terms'][0]['loss'].update(alpha=0, beta=0)", 'alpha'),
        (f"{hook}['terms'][0]['loss'] = dict(type='kd_plugins.DISTLoss', gamma=-1)", 'gamma'),
        (f"{hook}['terms'][0]['loss'] = dict(type='kd_plugins.NKDLoss', gamma='1')", 'gamma'),
    ):
        yield edit('hook', dkd + change, *words)
    for task in ("'train'", "'off'"):
        yield edit(
            'hook',
            dkd + f"{hook}['task'] = {task}\nmodel['head']['type'] = 'MultiLabelLinearClsHead'\n"
            f"model['head']['loss']['use_sigmoid'] = True\n{listed}ann_file='many.json')",
            'DKDLoss',
            '2 numbers',
            prepare=several,
        )


def options() -> Iterator[Mistake]:
    for change, *words in (
        ("model['type'] = 'ImageClasifier'", 'ImageClasifier', 'ImageClassifier'),
        ("model['backbone']['type'] = 'kd_plugins.CifarResnet'", 'CifarResnet', 'CifarResNet'),
        ("model['backbone']['type'] = 'CifarNet18'", 'CifarNet18'),
        ("model['backbone']['type'] = 'nosuch.ResNet'", 'nosuch'),
        ("model['backbone']['type'] = 5", 'type', '5'),
        ("model['backbone']['type'] = None", 'type'),
        ("model['neck']['type'] = 'GlobalAvgPooling'", 'GlobalAvgPooling', 'GlobalAveragePooling'),
        ("model['head']['type'] = 'LinearHead'", 'LinearHead'),
        ("model['head']['loss'] = 'CrossEntropyLoss'", 'loss'),
        ("model['head']['loss'] = dict(type='CrossEntropy')", 'CrossEntropy'),
        ("model['head']['loss']['weight'] = 2", 'weight'),
        ("model['data_preprocessor']['type'] = 'Preproc'", 'Preproc'),
        ("model['data_preprocessor']['means'] = 5", 'means'),
        ("model['backbone']['dept'] = 20", 'dept'),
        ("model['neck']['pool'] = 2", 'pool'),
        ("model['head']['in_channel'] = 16", 'in_channel'),
        ("model['heads'] = {}", 'heads'),
        ("model['init_cfg'] = 'x'", 'init_cfg'),
        ("model['init_cfg'] = dict(type='Pretrain', checkpoint='x.pth')", 'Pretrain'),
        ("model['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint='nosuch.pth')", 'nosuch.pth'),
        ("train_dataloader['dataset']['type'] = 'CustomDatasett'", 'CustomDatasett', 'CustomDataset'),
        ("train_dataloader['dataset']['root'] = 'x'", 'root'),
        ("train_dataloader['batchsize'] = 4", 'batchsize'),
        ("train_dataloader['shuffle'] = True", 'shuffle'),
        ("train_dataloader['sampler']['type'] = 'DefaultSample'", 'DefaultSample'),
        ("train_dataloader['sampler']['shufle'] = True", 'shufle'),
        ("train_dataloader['collate_fn'] = dict(type='nosuch')", 'nosuch'),
        ("train_dataloader['collate_fn'] = 'default_collate'", 'collate_fn'),
        ("train_dataloader['batch_sampler'] = dict(type='Nosuch')", 'Nosuch'),
        ("optim_wrapper['optimizer']['type'] = 'SDG'", 'SDG', 'SGD'),
        ("optim_wrapper['optimizer']['learning_rate'] = 1", 'learning_rate'),
        ("optim_wrapper['type'] = 'OptimWraper'", 'OptimWraper', 'OptimWrapper'),
        ("optim_wrapper['clip'] = 5", 'clip'),
        ("optim_wrapper['optimiser'] = {}", 'optimiser'),
        ("optim_wrapper['paramwise_cfg'] = 5", 'paramwise_cfg'),
        ("optim_wrapper['paramwise_cfg'] = dict(custom_key={})", 'custom_key'),
        ("param_scheduler[0]['type'] = 'MultistepLR'", 'MultistepLR', 'MultiStepLR'),
        ("param_scheduler[0]['steps'] = [1]", 'steps'),
        ("param_scheduler[0]['begin'] = 5\nparam_scheduler[0]['end'] = 2", 'begin|end'),
        ("default_hooks['checkpoint']['type'] = 'CheckpointHok'", 'CheckpointHok', 'CheckpointHook'),
        ("default_hooks['checkpoint']['intervall'] = 1", 'intervall'),
        ("default_hooks['export'] = dict(type='kd_plugins.ExportHok')", 'ExportHok'),
        ("default_hooks['checkpoint'] = 'CheckpointHook'", 'checkpoint|CheckpointHook'),
        ("custom_hooks = [dict(type='EMAHok')]", 'EMAHok', 'EMAHook'),
        ("custom_hooks = [dict(type='EMAHook', momentum=2.0)]", 'momentum'),
        ("custom_hooks = [dict(type='kd_plugins.FreezeHook', nosuch=1)]", 'nosuch'),
        ("custom_hooks = [dict(type='kd_plugins.FreezeHook', modules=['nosuch'])]", 'nosuch'),
        ("custom_hooks = [dict(type='EMAHook', priority='SOMETIMES')]", 'SOMETIMES|priority'),
        ("val_evaluator = dict(type='Acuracy')", 'Acuracy', 'Accuracy'),
        ("val_evaluator = dict(type='Accuracy', top=1)", 'top'),
        ("train_cfg['type'] = 'EpochLoop'", 'EpochLoop'),
        ("train_cfg['max_epoch'] = 3", 'max_epoch'),
        ("val_cfg = dict(type='ValLop')", 'ValLop'),
        ("default_scope = 'mmnosuch'", 'mmnosuch'),
        ("default_scope = 'mmdet'\nmodel['_scope_'] = 'mmdet'", 'ImageClassifier'),
        ("visualizer = dict(type='Visualiser')", 'Visualiser'),
        ("log_level = 'LOUD'", 'LOUD|log_level'),
        ('log_level = None', 'log_level'),
        ("visualizer = dict(type='Visualizer', vis_backends=[dict(type='NosuchBackend')])", 'NosuchBackend'),
        ('log_processor = dict(window=5)', 'window'),
        ('randomness = dict(sede=5)', 'sede'),
        ("compile = 'yes'", 'compile'),
        ("custom_hook = [dict(type='EMAHook')]", 'custom_hook', 'custom_hooks'),
        ('param_schedulers = param_scheduler; del param_scheduler', 'param_schedulers'),
        ('default_hook = default_hooks; del default_hooks', 'default_hook'),
        ('train_dataloder = {}; del train_dataloader', 'train_dataloader'),
        ('optim_wraper = optim_wrapper; del optim_wrapper', 'optim_wrapper'),
        ('randomnes = dict(seed=3); del randomness', 'randomnes'),
        ("model_wrapper_cfg = dict(type='DDP')\nlauncher = 'none'", 'DDP|model_wrapper_cfg'),
        ("runner_type = 'Nosuch'", 'Nosuch|runner_type'),
        ('load_from = 5', 'load_from'),
        ("resume = 'yes'", 'resume'),
        ('work_dir = 5', 'work_dir'),
        ('auto_scale_lr = True', 'auto_scale_lr'),
        ('auto_scale_lr = dict(enable=True)', 'base_batch_size|auto_scale_lr'),
        ('auto_scale_lr = dict(enable=True, base_batch_size=0)', 'base_batch_size'),
    ):
        yield edit('classifier', change, *words)
    for change, *words in (
        ("model['bbox_head']['type'] = 'RetinaHed'", 'RetinaHed', 'RetinaHead'),
        ("model['bbox_head']['num_class'] = 1", 'num_class'),
        ("model['neck']['num_out'] = 5", 'num_out'),
        ("model['bbox_head']['loss_cls']['type'] = 'FocalLos'", 'FocalLos'),
        ("model['neck']['out_channels'] = 100", 'out_channels|bbox_head|channels'),
        ("train_dataloader['dataset']['type'] = 'CocoDatset'", 'CocoDatset', 'CocoDataset'),
        ("model['train_cfg'] = None", 'train_cfg'),
        ("model['bbox_head']['anchor_generator']['type'] = 'AnchorGen'", 'AnchorGen'),
    ):
        yield edit('detector', change, *words)
    for change, *words in (
        ("model['head']['type'] = 'kd_plugins.ReIDHed'", 'ReIDHed', 'ReIDHead'),
        ("model['head']['margn'] = 0.3", 'margn'),
        ("train_dataloader['dataset']['split'] = 'training'", 'training'),
        ("train_dataloader['sampler']['instance'] = 4", 'instance'),
        (
            "train_dataloader['sampler'] = dict(type='DefaultSampler', shuffle=True)\ntrain_dataloader['batch_size'] = 1",
            'batch_size|instances|batch',
        ),
        ("val_evaluator['metrics'] = 'x'", 'metrics'),
        ("train_dataloader['dataset']['split'] = 'test'", 'gt_label|train'),
    ):
        yield edit('reid', change, *words)


def copied(change: Callable[[Path], object], name: str, what: str = 'data') -> Prepare:
    """Copy a data set into the run's folder as ``mine`` and change it."""
    return described(
        name, lambda folder, assets: [shutil.copytree(assets / what, folder / 'mine'), change(folder / 'mine')]
    )


def data() -> Iterator[Mistake]:
    place = "train_dataloader['dataset']"
    mine = f"{place}['data_root'] = 'mine'"
    for change, *words in (
        (f"{place}['data_root'] = 'nosuch'", 'nosuch'),
        (f"{place}['data_root'] = 'ASSETS/text.txt'", 'text.txt'),
        (f"{place}['data_root'] = 'ASSETS/empty'", 'empty'),
        (f"{place}['data_root'] = None", 'data_root'),
        (f"{place}['data_root'] = 5", 'data_root'),
        (f"{place}['data_root'] = ''", 'data_root|folder|class|empty'),
        (f"{place}['ann_file'] = 'nosuch.txt'", 'nosuch.txt'),
        (f"{place}['ann_file'] = 'ASSETS/data/class0/000.png'", '000.png|utf-8|ann_file'),
        (f"{place}['data_prefix'] = 'nosuch'", 'nosuch'),
        (f"{place}['extensions'] = ('.bmp',)", 'bmp|extension|image'),
        (f"{place}['pipeline'] = []", 'pipeline|PackInputs|collate'),
        (f"{place}['pipeline'] = None", 'pipeline'),
        (f"{place}['pipeline'] = 'standard'", 'pipeline'),
        (f"{place}['pipeline'] = {place}['pipeline'][1:]", 'pipeline|LoadImage|img'),
        (f"{place}['pipeline'] = {place}['pipeline'][:-1]", 'pipeline|PackInputs'),
        (f"{place}['pipeline'] = {place}['pipeline'][::-1]", 'pipeline|LoadImage|PackInputs'),
        (f"{place}['pipeline'][1]['type'] = 'RandomFlp'", 'RandomFlp'),
        (f"{place}['pipeline'][1]['direction'] = 'up'", 'direction|up'),
        (f"{place}['pipeline'][1]['probability'] = 1", 'probability'),
        (f"{place}['pipeline'].insert(1, dict(type='Resize'))", 'Resize'),
        (f"{place}['pipeline'].insert(1, dict(type='RandomCrop', crop_size=0))", 'crop_size|RandomCrop'),
        (f"{place}['pipeline'].insert(1, dict(type='RandomCrop', crop_size='x'))", 'crop_size|RandomCrop'),
        (f"{place}['pipeline'].insert(1, dict(type='Resize', scale=(0, 0)))", 'scale|Resize'),
        (f"{place}['pipeline'].insert(1, 'RandomFlip')", 'pipeline|RandomFlip'),
        (f"{place}['pipeline'].insert(1, dict(type='RandomResizedCrop', scale=-4))", 'scale|RandomResizedCrop'),
        (f"{place}['pipeline'].insert(1, dict(type='Normalize', mean='x', std='y'))", 'Normalize|mean'),
        (f"{place}['pipeline'][0]['color_type'] = 'purple'", 'purple'),
        (f"{place}['pipeline'][0]['imdecode_backend'] = 'nosuch'", 'nosuch'),
        (f"{place} = dict(type='kd_plugins.Corrupted', dataset={place}, label_noise=dict(rate=2))", 'rate'),
        (f"{place} = dict(type='kd_plugins.Corrupted', dataset={place}, label_noise=dict(rate='x'))", 'rate'),
        (f"{place} = dict(type='kd_plugins.Corrupted', dataset={place}, label_noise=0.4)", 'label_noise'),
        (f"{place} = dict(type='kd_plugins.Corrupted', dataset={place}, imbalance=dict(gamma=-1))", 'gamma'),
        (f"{place} = dict(type='kd_plugins.Corrupted', dataset={place}, label_noise=dict(ratio=1))", 'ratio'),
        (
            f"{place} = dict(type='kd_plugins.Corrupted', dataset={place}, validation=dict(size=500, part='train'))",
            'size|500',
        ),
        (f"{place} = dict(type='kd_plugins.Corrupted', label_noise=dict(rate=0.4))", 'dataset'),
        (f"{place} = dict(type='RepeatDataset', dataset={place}, times=0)", 'times|RepeatDataset|0 samples'),
        (f"{place} = dict(type='ConcatDataset', datasets=[])", 'datasets|ConcatDataset'),
        ("val_dataloader['dataset']['data_root'] = 'nosuch'", 'nosuch'),
        (
            "val_dataloader['dataset'] = dict(type='kd_plugins.Corrupted', dataset=val_dataloader['dataset'], label_noise=dict(rate=0.4))",
            'noise|test_mode|clean',
        ),
        (f"{place} = dict(type='kd_plugins.CIFAR10', data_root='nosuch', pipeline=[])", 'nosuch'),
        (f"{place} = dict(type='kd_plugins.CIFAR10', data_root='ASSETS/cifar', split='training')", 'training'),
        (
            f"{place} = dict(type='kd_plugins.CIFAR10', data_root='ASSETS/cifar', split='train', pipeline=[], label_noise=dict(rate=2.0))",
            'rate',
        ),
        (f"{place} = dict(type='kd_plugins.BatchedImages', dataset={place})", 'whole_batch|collate|BatchedImages'),
        (f"{place} = dict(type='kd_plugins.STL10', data_root='nosuch', split='train')", 'nosuch'),
        (f"{place} = dict(type='ImageNet', data_root='nosuch', split='train', pipeline=[])", 'nosuch'),
    ):
        yield edit('classifier', change, *words)
    first = 'class0/000.png'
    for name, change in (
        ('a picture cut short', lambda f: (f / first).write_bytes((f / first).read_bytes()[:60])),
        ('an empty picture', lambda f: (f / first).write_bytes(b'')),
        ('a text as a picture', lambda f: (f / first).write_text('no picture')),
        ('a dangling link', lambda f: [(f / first).unlink(), (f / first).symlink_to('nosuch.png')]),
    ):
        yield edit('classifier', mine, '000.png', prepare=copied(change, name))
    yield edit(
        'classifier',
        f"{mine}\ntrain_dataloader['num_workers'] = 1",
        '000.png',
        prepare=copied(lambda f: (f / first).write_text('no picture'), 'a text as a picture, in a worker'),
    )
    yield edit(
        'classifier',
        "val_dataloader['dataset']['data_root'] = 'mine'",
        '000.png',
        prepare=copied(lambda f: (f / first).write_text('no picture'), 'a text as a picture, scored'),
    )
    yield edit(
        'classifier', mine, 'class4', prepare=copied(lambda f: (f / 'class4').mkdir(), 'a class without a picture')
    )
    yield edit(
        'classifier', mine, 'mine', prepare=copied(lambda f: [shutil.rmtree(x) for x in f.iterdir()], 'no class')
    )
    yield edit(
        'classifier',
        f"{mine}\n{place}['ann_file'] = 'list.txt'",
        'list.txt',
        prepare=copied(lambda f: (f / 'list.txt').write_text('class0/000.png\nx\n'), 'a list without classes'),
    )
    yield edit(
        'classifier',
        f"{mine}\n{place}['ann_file'] = 'list.txt'",
        'list.txt|nosuch.png',
        prepare=copied(lambda f: (f / 'list.txt').write_text('class0/nosuch.png 0\n'), 'a list of what is not there'),
    )
    yield edit(
        'classifier',
        f"{mine}\n{place}['ann_file'] = 'list.txt'",
        'list.txt|Target 9',
        prepare=copied(
            lambda f: (f / 'list.txt').write_text('class0/000.png 9\nclass0/004.png 0\n'), 'a label above the classes'
        ),
    )
    yield edit(
        'classifier',
        f"{mine}\n{place}['ann_file'] = 'list.txt'",
        'list.txt',
        prepare=copied(lambda f: (f / 'list.txt').write_text('class0/000.png dog\n'), 'a label that is no number'),
    )
    yield edit(
        'classifier',
        f"{mine}\n{place}['ann_file'] = 'list.txt'",
        'list.txt|empty|image',
        prepare=copied(lambda f: (f / 'list.txt').write_text(''), 'an empty list'),
    )
    mine = f"{place}['data_root'] = 'mine/'"
    for change, *words in (
        (f"{place}['ann_file'] = 'nosuch.json'", 'nosuch.json'),
        (f"{place}['data_root'] = 'nosuch/'", 'nosuch'),
        (f"{place}['data_prefix'] = dict(img='nosuch/')", 'nosuch'),
        (f"{place}['filter_cfg'] = dict(filter_empty_gt=True, min_size=1000)", 'filter_cfg|min_size|no image|picture'),
        (f"{place}['filter_cfg'] = 5", 'filter_cfg'),
        (f"{place}['pipeline'] = {place}['pipeline'][:1]", 'pipeline|Pack|collate'),
        (f"{place}['pipeline'] = {place}['pipeline'][:1] + {place}['pipeline'][2:]", 'LoadAnnotations|bboxes|gt_'),
        (f"{place}['type'] = 'CustomDataset'", 'CustomDataset'),
        (f"{place}['data_prefix'] = 5", 'data_prefix'),
    ):
        yield edit('detector', change, *words)
    for name, content, *words in (
        ('no JSON', '{"images": [', 'annotations.json'),
        ('empty', '', 'annotations.json'),
        ('a list', '[]', 'annotations.json|list'),
        ('no images', '{"annotations": [], "categories": []}', 'image'),
        ('no categories', '{"images": [], "annotations": []}', 'categories'),
        (
            'nothing in it',
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}',
            'image|empty|annotations.json',
        ),
        (
            'no box',
            '{"images": [{"id": 0, "file_name": "0.png", "width": 64, "height": 64}], "annotations": [{"id": 1, "image_id": 0, "category_id": 1}], "categories": [{"id": 1, "name": "person"}]}',
            'bbox|area',
        ),
        (
            'a missing picture',
            '{"images": [{"id": 0, "file_name": "nosuch.png", "width": 64, "height": 64}], "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 2, 30, 30], "area": 900, "iscrowd": 0}], "categories": [{"id": 1, "name": "person"}]}',
            'nosuch.png',
        ),
    ):
        yield edit(
            'detector',
            mine,
            *words,
            prepare=copied(
                lambda f, content=content: (f / 'annotations.json').write_text(content), f'annotations: {name}', 'coco'
            ),
        )
    mine = "train_dataloader['dataset']['data_root'] = val_dataloader['dataset']['data_root'] = test_dataloader['dataset']['data_root'] = 'mine'"
    for name, change, *words in (
        ('a name without a person', lambda f: (f / 'bounding_box_train/photo.jpg').touch(), 'photo.jpg'),
        ('no query folder', lambda f: shutil.rmtree(f / 'query'), 'query'),
        ('no train folder', lambda f: shutil.rmtree(f / 'bounding_box_train'), 'bounding_box_train'),
        ('an empty gallery', lambda f: [x.unlink() for x in (f / 'bounding_box_test').iterdir()], 'bounding_box_test'),
        (
            'junk to train',
            lambda f: shutil.copy(next((f / 'query').iterdir()), f / 'bounding_box_train/-1_c1s1_000000_00.jpg'),
            '-1_c1s1',
        ),
        (
            'a broken picture',
            lambda f: next(iter(sorted((f / 'bounding_box_train').iterdir()))).write_bytes(b'x'),
            '0001_c',
        ),
        (
            'queries of nobody',
            lambda f: (
                [x.unlink() for x in (f / 'query').iterdir()]
                + [shutil.copy(next((f / 'bounding_box_train').iterdir()), f / 'query/0099_c1s1_000000_00.jpg')]
            ),
            'match|query',
        ),
    ):
        yield edit('reid', mine, *words, prepare=copied(change, name, 'market'))
    yield edit('reid', mine, 'mine|Market')


def scores() -> Iterator[Mistake]:
    hook = "default_hooks['checkpoint']"
    for change, *words in (
        (f"{hook}['save_best'] = 'nosuch'", 'save_best|nosuch'),
        (f"{hook}['save_best'] = 'accuracy/top5'", 'accuracy/top5'),
        (f"{hook}['save_best'] = 5", 'save_best'),
        (f"{hook}['save_best'] = 'acc'", 'acc'),
        (f"{hook}['save_best'] = ['accuracy/top1', 'mAP']", 'mAP'),
        (f"{hook}['save_best'] = 'accuracy/top1'\n{hook}['rule'] = 'best'", 'rule|best'),
        (f"{hook}['save_best'] = 'nosuch'\n{hook}['rule'] = 'greater'", 'nosuch'),
        (f"{hook}['save_best'] = 'auto'\ndel val_dataloader, val_cfg, val_evaluator", 'save_best|val'),
        ("custom_hooks = [dict(type='EarlyStoppingHook', monitor='nosuch')]", 'nosuch'),
        ("custom_hooks = [dict(type='EarlyStoppingHook', monitor='nosuch', strict=True, rule='greater')]", 'nosuch'),
        ("val_evaluator = dict(type='Accuracy', topk=(9,))", 'topk|9'),
        ("val_evaluator = dict(type='Accuracy', topk=())", 'topk'),
        ("val_evaluator = dict(type='Accuracy', topk='x')", 'topk'),
        ("val_evaluator = [dict(type='Accuracy'), None]", 'val_evaluator'),
        ("val_evaluator = dict(type='SingleLabelMetric', items=('recal',))", 'recal|items'),
        ("val_evaluator = dict(type='kd_plugins.ReIDMetric')", 'ReIDMetric|identity'),
        ("val_evaluator = dict(type='mmdet.CocoMetric', ann_file='nosuch.json')", 'nosuch.json'),
        ("val_evaluator = dict(type='mmdet.CocoMetric', metric='bbx')", 'bbx'),
        ("val_evaluator = dict(type='mmdet.VOCMetric')", 'VOCMetric|pred_instances'),
    ):
        yield edit('classifier', change, *words)
    yield edit('reid', "val_dataloader['dataset']['split'] = 'query'", 'gallery|query')
    yield edit('reid', "val_evaluator['save_to'] = 'ASSETS/text.txt/x.npz'", 'text.txt')
    yield edit('reid', "val_evaluator['device'] = 'tpu'", 'device|tpu')
    yield edit(
        'reid', "val_dataloader['dataset']['pipeline'][-1] = dict(type='PackInputs')", 'identity|meta_keys|camera'
    )
    yield edit(
        'reid', "default_hooks['checkpoint'] = dict(type='CheckpointHook', save_best='mAPP', rule='greater')", 'mAPP'
    )


def resumes() -> Iterator[Mistake]:
    for checkpoint, word in (
        ('nosuch.pth', 'exist'),
        ('ASSETS/empty', 'ASSETS/empty|exist'),
        ('ASSETS/empty.pth', 'empty.pth'),
        ('ASSETS/text.pth', 'text.pth'),
        ('ASSETS/cut.pth', 'cut.pth'),
        ('ASSETS/list.pth', 'list.pth'),
        ('ASSETS/pickled.pth', 'allow'),
        ('ASSETS/teacher.pth', 'teacher.pth'),
        ('ASSETS/nothing.pth', 'nothing.pth'),
        ('ASSETS/classifier/run/student.pth', 'student.pth'),
        ('ASSETS/reid/run/epoch_1.pth', 'epoch_1.pth'),
        ('ASSETS/texts.pth', 'texts.pth'),
        ('ASSETS/data/class0/000.png', '000.png'),
        ('ASSETS/other.pth', 'other.pth'),
    ):
        yield edit('classifier', '', word, arguments=['--resume', checkpoint])
        yield (
            edit('classifier', f"load_from = '{checkpoint}'", word)
            if checkpoint
            not in ('ASSETS/teacher.pth', 'ASSETS/classifier/run/student.pth', 'ASSETS/reid/run/epoch_1.pth')
            else edit('hook', '', word, arguments=['--resume', checkpoint])
        )
    good = ['--resume', 'ASSETS/classifier/run/epoch_1.pth']
    for base, change, *words in (
        ('classifier', "optim_wrapper['optimizer'] = dict(type='Adam', lr=0.1)", 'optim', 'epoch_1.pth|resume'),
        ('classifier', "optim_wrapper['optimizer'] = dict(type='AdamW', lr=0.1)", 'optim'),
        ('classifier', "optim_wrapper['paramwise_cfg'] = dict(norm_decay_mult=0.0)", 'optim', 'group|paramwise'),
        ('classifier', "model['backbone']['depth'] = 14", 'epoch_1.pth', 'backbone'),
        ('classifier', "model['backbone']['width'] = 8\nmodel['head']['in_channels'] = 32", 'epoch_1.pth'),
        ('classifier', "model['head']['num_classes'] = 7", 'epoch_1.pth|head.fc'),
        ('classifier', 'param_scheduler = []', 'param_scheduler|schedul'),
        ('classifier', 'param_scheduler = param_scheduler * 2', 'param_scheduler|schedul'),
        ('classifier', "param_scheduler = [dict(type='CosineAnnealingLR', T_max=5)]", 'param_scheduler|schedul'),
        ('hook', "custom_hooks[0]['terms'][0].update(adapter='auto')", 'adapter'),
        ('distiller', "model['student']['backbone']['depth'] = 14", 'epoch_1.pth|backbone'),
        ('distiller', "model['terms'][0].update(adapter='auto')", 'adapter'),
        ('reid', '', 'epoch_1.pth'),
        ('detector', '', 'epoch_1.pth'),
    ):
        yield edit(base, change, *words, arguments=good)
    yield edit(
        'classifier',
        "load_from = 'ASSETS/reid/run/student.pth'\nmodel['backbone']['width'] = 8\nmodel['head']['in_channels'] = 32",
        'student.pth',
        'load_from|fit',
    )
    yield edit('classifier', '', 'epoch_1.pth', arguments=['--resume'], prepare=file('run/epoch_1.pth', 'damaged'))
    yield edit('classifier', "load_from = 'torchvision://nosuch'", 'nosuch')
    yield edit('classifier', "load_from = 'https://127.0.0.1:9/x.pth'", '127.0.0.1')
    yield edit('classifier', "load_from = 'open-mmlab://nosuch'", 'nosuch')


def launchers() -> Iterator[Mistake]:
    one = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT='29731')
    for arguments, environment, *words in (
        (['--launcher', 'pytorch'], {}, 'RANK|torchrun|launcher'),
        (['--launcher', 'slurm'], {}, 'SLURM|slurm'),
        (['--launcher', 'mpi'], {}, 'mpi|OMPI'),
        (['--launcher', 'ray'], {}, 'ray'),
        (['--launcher'], {}, 'launcher'),
        (['--launcher', 'pytorch'], dict(RANK='0'), 'WORLD_SIZE|torchrun|launcher'),
        (['--launcher', 'pytorch'], dict(one, RANK='x', WORLD_SIZE='1', LOCAL_RANK='0'), 'RANK|launcher'),
        (['--launcher', 'pytorch'], dict(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0'), 'MASTER_ADDR|launcher'),
        (['--launcher', 'pytorch'], dict(one, RANK='3', WORLD_SIZE='1', LOCAL_RANK='3'), 'RANK|rank'),
        (
            ['--launcher', 'pytorch'],
            dict(one, RANK='0', WORLD_SIZE='1', LOCAL_RANK='0', MASTER_PORT='x'),
            'MASTER_PORT|port',
        ),
    ):
        yield edit('classifier', '', *words, arguments=arguments, environment=environment)
    yield edit(
        'classifier',
        '',
        'RANK|torchrun|launcher',
        tool='test',
        arguments=['ASSETS/classifier/run/student.pth', '--launcher', 'pytorch'],
    )
    yield edit(
        'classifier', '', 'slurm', tool='test', arguments=['ASSETS/classifier/run/student.pth', '--launcher', 'slurm']
    )
    yield edit(
        'classifier',
        "requires = [dict(config='ASSETS/teacher.py', checkpoint='nosuch.pth')]",
        'nosuch.pth|teacher.py',
        arguments=['--launcher', 'pytorch'],
        environment=dict(one, RANK='0', WORLD_SIZE='1', LOCAL_RANK='0'),
    )


def folders() -> Iterator[Mistake]:
    for arguments, word in (
        (['--work-dir', 'ASSETS/text.txt'], 'text.txt'),
        (['--work-dir', 'ASSETS/text.txt/run'], 'text.txt'),
        (['--work-dir'], 'work-dir'),
        (['--work-dir', '/proc/nosuch'], '/proc/nosuch'),
    ):
        yield edit('classifier', '', word, arguments=arguments)
        yield edit('classifier', '', word, arguments=['ASSETS/classifier/run/student.pth', *arguments], tool='test')
    for value, word in (
        ("'ASSETS/text.txt'", 'text.txt'),
        ("['run']", 'work_dir'),
        ("'run\\0x'", 'work_dir|null'),
        ("'x' * 300", 'xxx'),
    ):
        yield edit('classifier', f'work_dir = {value}', word)
    yield edit(
        'classifier',
        '',
        'text.txt',
        tool='test',
        arguments=['ASSETS/classifier/run/student.pth', '--show-dir', 'ASSETS/text.txt'],
    )
    yield edit('classifier', "default_hooks['checkpoint']['out_dir'] = 'ASSETS/text.txt'", 'text.txt')
    yield edit('hook', "custom_hooks[0]['teacher']['cache'] = 'ASSETS/text.txt/cache'", 'text.txt')


def command_options() -> Iterator[Mistake]:
    for given, *words in (
        ('novalue', 'novalue'),
        ('model.backbone=3', 'backbone'),
        ('train_cfg.max_epoch=3', 'max_epoch'),
        ('optim_wrapper.optimizer.lr=abc', 'lr|learning rate'),
        ('custom_hooks.5.x=1', 'custom_hooks|5'),
        ('default_scope.x=1', 'default_scope'),
        ('optim_wrapper.optimiser.lr=0.1', 'optimiser'),
        ('train_dataloader.batch_size=1e3', 'batch_size'),
        ('model.head.num_classes=[4]', 'num_classes'),
        ('=5', '=5|option|key'),
        ('train_dataloader.dataset.pipeline.9.prob=1', 'pipeline|9'),
        ('train_dataloader.dataset.pipeline.x.prob=1', 'pipeline|x'),
        ('param_scheduler.milestones=[1]', 'param_scheduler'),
        ('model.backbone.dpth=20', 'dpth'),
        ('train_dataloader.batch_size=', 'batch_size'),
        ('model.head.num_classes=(4', 'cfg-options|num_classes|bracket|('),
    ):
        yield edit('classifier', '', *words, arguments=['--cfg-options', given])
    yield edit('classifier', '', 'cfg-options', arguments=['--cfg-options'])
    for option in ('--amp=yes', '--epochs=5', '--seed=3', 'more.pth'):
        yield edit('classifier', '', option.partition('=')[0].lstrip('-'), arguments=[option])


def watching() -> Iterator[Mistake]:
    hook = "custom_hooks.append(dict(type='kd_plugins.WatchHook'"
    for change, *words in (
        (f'{hook}, gradients=-1))', 'gradients', '-1'),
        (f"{hook}, gradients='often'))", 'gradients', 'often'),
        (f'{hook}, gradient=1))', 'gradient'),
        (f"{hook})); custom_hooks[0]['terms'][0]['name'] = 'task'", "'task'", 'rename'),
        (f'{hook}, gradients=1)); compile = True', 'compile', 'gradients'),
        ("visualizer = dict(type='Visualizer', vis_backends=[dict(type='AimVisBackend')])", 'pip install aim'),
    ):
        yield edit('hook', change, *words)
    for arguments, *words in (
        ('--watch nosuch', 'nosuch', 'tensorboard'),
        ('--cfg-options default_hooks.watch.gradients=5', 'default_hooks.watch', 'type'),
        ('--watch --cfg-options default_hooks.watch.gradients=x', 'gradients', 'x'),
    ):
        yield edit('hook', '', *words, arguments=arguments.split())


def tests() -> Iterator[Mistake]:
    for checkpoint, *words in (
        ('nosuch.pth', 'exist'),
        ('ASSETS/empty', 'empty'),
        ('ASSETS/empty.pth', 'empty.pth'),
        ('ASSETS/text.pth', 'text.pth'),
        ('ASSETS/cut.pth', 'cut.pth'),
        ('ASSETS/list.pth', 'list.pth'),
        ('ASSETS/pickled.pth', 'allow'),
        ('ASSETS/teacher.pth', 'fit'),
        ('ASSETS/reid/run/student.pth', 'fit'),
        ('ASSETS/other.pth', 'fit'),
        ('ASSETS/nothing.pth', 'nothing.pth'),
        ('ASSETS/data/class0/000.png', '000.png'),
        ('', 'checkpoint'),
        ('ASSETS/texts.pth', 'texts.pth'),
    ):
        yield edit('classifier', '', *words, tool='test', arguments=[checkpoint] if checkpoint else [])
    for base, change, *words in (
        ('classifier', 'del test_dataloader', 'test_dataloader'),
        ('classifier', 'del test_evaluator', 'test_evaluator'),
        ('classifier', 'del test_cfg', 'test_cfg'),
        ('classifier', 'del test_dataloader, test_evaluator, test_cfg', 'test_dataloader'),
        ('classifier', "test_dataloader['batch_size'] = 0", 'batch_size'),
        ('classifier', "test_dataloader['dataset']['data_root'] = 'nosuch'", 'nosuch'),
        ('classifier', "test_evaluator = dict(type='Nosuch')", 'Nosuch'),
        ('classifier', "model['head']['num_classes'] = 5", 'fit|head.fc'),
        ('classifier', "test_evaluator['topk'] = (9,)", 'topk|9'),
        ('classifier', "test_evaluator = 'Accuracy'", 'test_evaluator'),
        ('classifier', 'del model', 'model'),
        ('classifier', "test_dataloader['dataset']['indices'] = 0", 'image|empty|indices'),
        ('classifier', 'test_evaluator = None', 'test_evaluator'),
        ('reid', "test_evaluator = dict(type='Accuracy')", 'fit|Accuracy'),
    ):
        yield edit(base, change, *words, tool='test', arguments=['ASSETS/classifier/run/student.pth'])


def changed(**changes: Any) -> Prepare:
    """Write features with some arrays changed."""

    def write(folder: Path, assets: Path) -> None:
        arrays = features()
        for name, change in changes.items():
            arrays[name] = change(arrays[name]) if callable(change) else change
        np.savez(folder / 'mine.npz', **{name: value for name, value in arrays.items() if value is not None})

    return described(', '.join(changes), write)


def retrieval() -> Iterator[Mistake]:
    for name in features():
        yield line('eval_reid', 'mine.npz', name, prepare=changed(**{name: None}))
        yield (
            line('eval_reid', 'mine.npz', name, prepare=changed(**{name: lambda x: x[:-1]}))
            if 'features' not in name
            else line('eval_reid', 'mine.npz', name, prepare=changed(**{name: lambda x: x[0]}))
        )
    for name, change, *words in (
        ('query_features', lambda x: x * np.nan, 'query_features', 'row'),
        ('gallery_features', lambda x: x.astype(str), 'gallery_features'),
        ('gallery_features', lambda x: x[:, :5], 'dimensions'),
        ('query_ids', lambda x: x + 0.5, 'query_ids'),
        ('query_ids', lambda x: x.astype(str), 'query_ids'),
        ('query_features', lambda x: x[:0], 'query_features'),
        ('gallery_ids', lambda x: x + 50, 'match'),
        ('query_features', lambda x: x.astype(object), 'mine.npz'),
        ('gallery_features', lambda x: x * np.inf, 'gallery_features'),
        ('gallery_cams', lambda x: x * 0, 'match|camera'),
        ('query_cams', lambda x: x.astype(bool), 'query_cams'),
        ('gallery_ids', lambda x: x * 0 - 1, 'gallery|match|junk'),
        ('query_features', lambda x: x.astype(complex), 'query_features'),
        ('gallery_features', lambda x: x[..., None], 'gallery_features'),
    ):
        yield line('eval_reid', 'mine.npz', *words, prepare=changed(**{name: change}))
    for arguments, *words in (
        ('nosuch.npz', 'nosuch.npz'),
        ('ASSETS/text.txt', 'text.txt'),
        ('ASSETS/empty', 'empty'),
        ('ASSETS/teacher.pth', 'teacher.pth'),
        ('', 'source'),
        ('ASSETS/features.npz ASSETS/teacher.pth', 'features.npz'),
        ('ASSETS/features.npz --expand 0', 'expand'),
        ('ASSETS/features.npz --expand -1', 'expand'),
        ('ASSETS/features.npz --expand x', 'expand'),
        ('ASSETS/features.npz --rerank --k1 0', 'k1'),
        ('ASSETS/features.npz --rerank --k2 0', 'k2'),
        ('ASSETS/features.npz --rerank --lambda 2', 'lambda'),
        ('ASSETS/features.npz --rerank --lambda -1', 'lambda'),
        ('ASSETS/features.npz --rerank --lambda nan', 'lambda'),
        ('ASSETS/features.npz --approximate ivf --top 0', 'top'),
        ('ASSETS/features.npz --approximate annoy', 'annoy'),
        ('ASSETS/features.npz --expand 2 --alpha nan', 'alpha'),
        ('ASSETS/features.npz --metric manhattan', 'manhattan'),
        ('ASSETS/features.npz --metric euclidean --expand 2', 'expand'),
        ('ASSETS/features.npz --device gpu', 'gpu'),
        ('ASSETS/features.npz --device cpu:x', 'cpu:x'),
        ('ASSETS/features.npz --device cuda', 'cuda'),
        ('ASSETS/features.npz --ap mean', 'mean'),
        ('ASSETS/features.npz --rerank --k1 -3', 'k1'),
        ('ASSETS/features.npz --rerank --k1 x', 'k1'),
        ('ASSETS/features.npz --launcher pytorch', 'torchrun'),
    ):
        yield line('eval_reid', arguments, *words)
    for base, arguments, change, *words in (
        ('reid', [], '', 'checkpoint'),
        ('reid', ['nosuch.pth'], '', 'nosuch.pth'),
        ('reid', ['ASSETS/teacher.pth'], '', 'fit'),
        ('reid', ['ASSETS/text.pth'], '', 'text.pth'),
        ('reid', ['ASSETS/reid/run/student.pth'], 'del test_dataloader', 'test_dataloader'),
        ('reid', ['ASSETS/reid/run/student.pth'], "test_dataloader['dataset']['split'] = 'query'", 'gallery'),
        ('reid', ['ASSETS/reid/run/student.pth', '--work-dir', 'ASSETS/text.txt'], '', 'text.txt'),
        ('reid', ['ASSETS/reid/run/student.pth'], 'del model', 'model'),
        ('reid', ['ASSETS/reid/run/student.pth'], "test_dataloader['dataset']['data_root'] = 'nosuch'", 'nosuch'),
        ('classifier', ['ASSETS/classifier/run/student.pth'], '', 'identity|Market|re-id|ReID'),
        ('reid', ['ASSETS/reid/run/student.pth'], "model['backbone']['depth'] = 14", 'fit'),
    ):
        yield edit(base, change, *words, tool='eval_reid', arguments=arguments)


def exports() -> Iterator[Mistake]:
    for change, arguments, *words in (
        ('', 'ASSETS/teacher.pth --to student.tflite', 'student.tflite', '.onnx'),
        ('', 'ASSETS/teacher.pth --to student.pt2', 'fit'),
        ('', 'nosuch.pth --to student.onnx', 'nosuch.pth'),
        ('', 'ASSETS/pickled.pth --to student.onnx', 'allow'),
        ('', 'ASSETS/classifier/run/student.pth', '--to'),
        ('', 'ASSETS/classifier/run/student.pth --to ASSETS/text.txt/student.onnx', 'text.txt', 'written'),
        ('', 'ASSETS/classifier/run/student.pth --to /proc/student.onnx', '/proc/student.onnx'),
        ('', 'ASSETS/classifier/run/student.pth --to student.pt2 --size 0 16', '--size'),
        ('', 'ASSETS/classifier/run/student.pth --to student.pt2 --size 16', '--size'),
        ('', 'ASSETS/classifier/run/student.pth --to student.pt2 --features found.npz', 'found.npz', 'ReIDMetric'),
        ('', 'ASSETS/classifier/run/student.pth --to student.pt2 --decode', '--decode', 'ImageClassifier'),
        ('del test_dataloader', 'ASSETS/classifier/run/student.pth --to student.pt2', 'test', '--size'),
        ('del test_dataloader', 'ASSETS/classifier/run/student.pth --to student.pt2 --score', 'test_dataloader'),
        ('del model', 'ASSETS/classifier/run/student.pth --to student.pt2', 'model'),
        ("model['type'] = 'ImageToImageRetriever'", 'ASSETS/classifier/run/student.pth --to student.pt2', 'Retriever'),
        (
            "test_dataloader['dataset']['pipeline'][0] = dict(type='Nosuch')",
            'ASSETS/classifier/run/student.pth --to student.pt2',
            'Nosuch',
        ),
    ):
        yield edit('classifier', change, *words, arguments=arguments.split(), tool='export')
    yield edit('reid', '', 'found.txt', arguments=['x.pth', '--to', 'x.pt2', '--features', 'found.txt'], tool='export')


def studies() -> Iterator[Mistake]:
    for change, *words in (
        ('del networks', 'networks'),
        ('del methods', 'methods'),
        ('networks = {}', 'networks'),
        ('methods = {}', 'methods'),
        ("networks = ['a']", 'networks'),
        ("methods = ['KD']", 'methods'),
        ('teachers = {}', "'big'"),
        ("teachers = ['big']", 'teachers'),
        ("networks['small']['teacher'] = 'bigger'", 'bigger'),
        ("del networks['small']['teacher']", 'teacher'),
        ("networks['small']['config'] = 'nosuch.py'", 'nosuch.py'),
        ("networks['small']['config'] = None", 'config'),
        ("networks['small']['config'] = 'ASSETS/text.txt'", 'text.txt'),
        ("teachers['big']['config'] = 'nosuch.py'", 'nosuch.py'),
        ("networks['small']['cfg'] = 'x'", 'cfg'),
        ("networks['small']['config'] = 'ASSETS/study/tiny.py'", 'tiny.py|model|train_dataloader'),
        ("methods['KD']['terms'] = ['kdd']", 'kdd'),
        ("methods['KD']['terms'] = 'kd'", 'terms'),
        ("methods['KD']['term'] = ['kd']", 'term'),
        ("methods['KD']['terms'] = [dict(name='x')]", 'term', 'loss'),
        ("methods['KD'] = None", 'KD'),
        ("methods['KD'] = ['kd']", 'KD'),
        ("methods['KD']['hook'] = dict(tsak=False)", 'tsak'),
        ("methods['KD']['wrap'] = dict(peers=1)", 'wrap|type'),
        ("methods['KD']['wrap'] = dict(type='kd_plugins.Nosuch')", 'Nosuch'),
        ("methods['KD']['first'] = 'nosuch'", 'nosuch'),
        ("methods['KD']['first'] = dict(nosuch=1)", 'nosuch'),
        ("methods['KD']['overrides'] = dict(modle=dict())", 'modle'),
        ("methods['KD']['overrides'] = 5", 'overrides'),
        (
            "methods['KD']['terms'] = [dict(name='x', loss=dict(type='kd_plugins.Nosuch'), student='head.fc', teacher='head.fc')]",
            'Nosuch',
        ),
        (
            "methods['KD']['terms'] = [dict(name='x', loss=dict(type='kd_plugins.KDLoss', tua=1), student='head.fc', teacher='head.fc')]",
            'tua',
        ),
        (
            "methods['KD']['terms'] = [dict(name='x', loss=dict(type='kd_plugins.KDLoss'), student='head.fcc', teacher='head.fc')]",
            'head.fcc',
        ),
        ("validation = dict(size=9)\nmethods['Baseline']['search'] = dict(weight=[1, 2])", 'search', 'terms'),
        ("validation = dict(size=9)\nmethods['KD']['search'] = dict(weight=[])", 'weight of search'),
        ("validation = dict(size=9)\nmethods['KD']['search'] = dict(weight=[1, -1])", 'weight of search', '-1'),
        (
            "validation = dict(size=9)\nmethods['KD']['search'] = dict(weight=[1, 2], epochs=[1, 2])",
            'halving',
            '1 epochs',
        ),
        ("validation = dict(size=9)\nmethods['KD']['search'] = dict(weight=[1, 2], epochs=[50])", 'epochs', '50'),
        ("validation = dict(size=9)\nmethods['KD']['search'] = [1, 2]", 'search'),
        ("methods['KD']['search'] = dict(weight=[1, 2])", 'validation'),
        ("methods['kd'] = dict()", 'kd|names'),
        ("methods[''] = dict()", 'names|methods'),
        ('methods[5] = dict()', 'methods|5|name'),
        ('seeds = []', 'seeds'),
        ('seeds = 3', 'seeds'),
        ("seeds = ['a']", 'seeds'),
        ('seeds = [0, 0]', 'seeds'),
        ('seeds = [-1]', 'seeds'),
        ('seeds = [1.5]', 'seeds'),
        ('seeds = [5000]', 'seeds'),
        ("metric = 'accuracy/top5'", 'accuracy/top5'),
        ("metric = 'nosuch'", 'nosuch'),
        ('metric = None', 'metric'),
        ("average = 'mode'", 'average'),
        ("teacher_data = 'dirty'", 'teacher_data'),
        ("teacher_seeds = 'all'", 'teacher_seeds'),
        ("columns = 'x'", 'columns'),
        ("baseline = 'nosuch'", 'baseline'),
        ("error = 'yes'", 'error'),
        ("teacher_cache = 'yes'", 'teacher_cache'),
        ('references = 5', 'references'),
        ('references = [dict(table=5)]', 'references'),
        ("references = [dict(network='small', table='a  b\\nKD  1  2')]", 'references'),
        ("references = ['x']", 'references'),
        ("terms_from = 'nosuch.py'", 'nosuch.py'),
        ("terms_from = 'ASSETS/study/net.py'", 'net.py'),
        ("replace = ['nosuch.py']", 'nosuch.py'),
        ("replace = 'x.py'", 'replace'),
        ("corruptions = {'a': dict(label_noise=dict(rate=2))}", 'rate'),
        ("corruptions = {'a': dict(label_noise=0.4)}", 'label_noise'),
        ("corruptions = {'a': dict(noise=1)}", 'noise'),
        ("corruptions = ['clean']", 'corruptions'),
        ("corruptions = {'a': dict(imbalance=dict(gamma=-1))}", 'gamma'),
        ('corruptions = {}', 'corruptions'),
        ('validation = dict(size=0)', 'size'),
        ('validation = 500', 'validation'),
        ('validation = dict(size=100000)', 'size|100000'),
        ("validation = dict(part='val', size=3)", 'part'),
        ('common = dict(train_cgf=dict(max_epochs=1))', 'train_cgf'),
        ('common = 5', 'common'),
        ('seed = [1, 2]', 'seed'),
        ('network = networks', 'network'),
        ('title = 5', 'title'),
        ('root = 5', 'root'),
        ('notes = 5', 'notes'),
        ('common = dict(train_cfg=dict(max_epochs=0))', 'max_epochs'),
        ('common = dict(train_dataloader=dict(batch_size=-1))', 'batch_size'),
        ('common = dict(model=dict(head=dict(num_classes=3)))', 'num_classes|classes'),
        ("methods['KD']['overrides'] = dict(optim_wrapper=dict(optimizer=dict(lr='x')))", 'lr'),
    ):
        yield edit('study', change, *words, tool='study')
    for arguments, *words in (
        ('--jobs 0', 'jobs'),
        ('--jobs x', 'jobs'),
        ('--threads 0', 'threads'),
        ('--only nosuch', 'nosuch'),
        ('--only', 'only'),
        ('--only small nosuch*', 'nosuch|small'),
        ('--table --only nosuch', 'nosuch'),
        ('--list --only nosuch', 'nosuch'),
        ('--changed maybe', 'maybe'),
        ('--launcher ray', 'ray'),
        ('--launcher slurm', 'slurm'),
        ('--gpus -1', 'gpus'),
        ('--root ASSETS/text.txt', 'text.txt'),
        ('--table --root nosuch', 'result|nosuch|run'),
        ('--jobs -2', 'jobs'),
    ):
        yield edit('study', '', *words, tool='study', arguments=arguments.split())
    for arguments, *words in (
        ('nosuch.py', 'nosuch.py'),
        ('', 'study'),
        ('ASSETS/study/net.py', 'net.py'),
        ('ASSETS/text.txt', 'text.txt'),
        ('ASSETS/empty', 'ASSETS/empty'),
    ):
        yield line('study', arguments, *words)


def built_on() -> Iterator[Mistake]:
    for change, *words in (
        ("prepare = [dict(type='nosuch.function')]", 'nosuch.function'),
        ("prepare = dict(type='kd_plugins.datasets.drawing.draw_voc')", 'prepare'),
        ("prepare = 'draw'", 'prepare'),
        ("prepare = [dict(root='x')]", 'prepare', 'type'),
        ("prepare = [dict(type='kd_plugins.datasets.drawing.draw_vocc')]", 'draw_vocc'),
        ("prepare = [dict(type='kd_plugins.datasets.drawing.draw_voc', nosuch=1)]", 'nosuch'),
        ("prepare = [dict(type='kd_plugins.datasets.drawing.draw_voc')]", 'prepare|draw_voc', 'root|folder'),
        ("prepare = [dict(type='draw_voc')]", 'draw_voc'),
        ('prepare = [5]', 'prepare'),
        ("prepare = [dict(type='kd_plugins.datasets.drawing.draw_voc', root='ASSETS/text.txt')]", 'text.txt'),
        ('prepare = [dict(type=5)]', 'prepare'),
        ("requires = [dict(config='nosuch.py', checkpoint='x.pth')]", 'nosuch.py'),
        ("requires = [dict(config='x.py')]", 'requires', 'checkpoint'),
        ("requires = [dict(checkpoint='nosuch.pth')]", 'requires', 'config'),
        ("requires = dict(config='x.py', checkpoint='x.pth')", 'requires'),
        ("requires = 'x.py'", 'requires'),
        ("requires = ['x.py']", 'requires'),
        ("requires = [dict(config='cfg.py', checkpoint='nosuch.pth')]", 'requires|circle|itself'),
        ('requires = 5', 'requires'),
        ("compare = dict(other='nosuch.py')", 'nosuch.py'),
        ("compare = 'nosuch.py'", 'compare'),
        ("compare = ['nosuch.py']", 'compare'),
        ('compare = dict(other=None)', 'compare'),
        ('compare = 5', 'compare'),
        ("compare = dict(other='ASSETS/text.txt')", 'text.txt'),
        ('compare = dict(other=5)', 'compare'),
        ("compare = {18: 'cfg.py'}", 'compare'),
        ("compare = dict(other='bad.py')", 'bad.py'),
        ('note = 5', 'note'),
        ('beside = 5', 'beside'),
        ("requires = [dict(config='bad.py', checkpoint='nosuch.pth')]", 'bad.py'),
    ):
        yield edit(
            'classifier',
            change,
            *words,
            prepare=described('', lambda folder, assets: (folder / 'bad.py').write_text('model = dict(\n')),
        )


def preparing() -> Iterator[Mistake]:
    for arguments, *words in (
        ('', 'DATASET'),
        ('cifar', 'cifar'),
        ('imagenet', 'imagenet'),
        ('cifar10 --rot x', 'rot'),
        ('cifar10 --root ASSETS/text.txt', 'text.txt'),
        ('voc2007 --root ASSETS/text.txt', 'text.txt'),
        ('tiny-imagenet --root ASSETS/empty', 'empty'),
        ('tiny-imagenet --root nosuch', 'nosuch'),
        ('stl10 --root ASSETS/text.txt', 'text.txt'),
        ('dtd --root ASSETS/empty', 'empty'),
        ('dtd --root nosuch', 'nosuch'),
        ('market1501 --root ASSETS/empty', 'empty'),
        ('market1501 --root ASSETS/text.txt', 'text.txt'),
        ('drawn --root ASSETS/text.txt', 'text.txt'),
        ('cifar100 --root ASSETS/cifar', 'cifar'),
        ('voc2012 --root ASSETS/text.txt/x', 'text.txt'),
        ('tiny-imagenet --root ASSETS/text.txt', 'text.txt'),
        ('dtd --root ASSETS/text.txt', 'text.txt'),
        ('cifar100-teachers --root ASSETS/empty', 'empty'),
    ):
        yield line('prepare_data', arguments, *words)


def benchmarks() -> Iterator[Mistake]:
    for arguments, *words in (
        ('', 'required: {losses,reid,loader,step,teacher,race,backbones}'),
        ('nosuch', 'nosuch'),
        ('losses --repeats 0', 'repeats'),
        ('losses --repeats x', 'repeats'),
        ('losses --device tpu', 'tpu'),
        ('losses --device cuda', 'cuda'),
        ('losses --dtypes int8', 'int8'),
        ('losses --limit x', 'limit'),
        ('losses --threads 0', 'threads'),
        ('losses --threads -1', 'threads'),
        ('loader --images 0', 'images'),
        ('loader --images -5', 'images'),
        ('loader --edge 0', 'edge'),
        ('loader nosuch.py', 'nosuch.py'),
        ('step --parts nosuch', 'nosuch'),
        ('step --only nosuch', 'nosuch'),
        ('step --batch-size 0', 'batch-size'),
        ('step --batch-size -1', 'batch-size'),
        ('step --device gpu', 'gpu'),
        ('teacher --parts nosuch', 'nosuch'),
        ('teacher --batch-size 0', 'batch-size'),
        ('reid --parts nosuch', 'nosuch'),
        ('losses --json nosuch/x.json', 'nosuch'),
        ('losses --json ASSETS/empty', 'empty'),
        ('reid --folder nosuch', 'nosuch'),
        ('race --epochs 0', 'epochs'),
        ('backbones --every 0', 'every'),
        ('backbones --contestants nosuch', 'nosuch'),
        ('backbones', 'data/mobilenet_v2.pth'),
    ):
        yield line('benchmark', arguments, *words)


def pictures() -> Iterator[Mistake]:
    good = '--teacher ASSETS/teacher_full.py ASSETS/teacher.pth --student ASSETS/classifier/cfg.py ASSETS/classifier/run/student.pth --tap backbone.stage3 --out x.png --images 4'
    for command, arguments, *words in (
        ('ranking', 'nosuch.npz --out x', 'nosuch.npz'),
        ('ranking', 'ASSETS/features.npz --out x', 'query_paths'),
        ('ranking', 'ASSETS/text.txt --out x', 'text.txt'),
        ('ranking', 'ASSETS/features.npz', 'out'),
        ('ranking', 'ASSETS/features.npz --out x --top 0', 'top'),
        ('ranking', 'ASSETS/features.npz --out x --queries 0', 'queries'),
        ('ranking', 'ASSETS/features.npz --out x --top x', 'top'),
        ('ranking', 'ASSETS/features.npz --out x --metric y', 'metric'),
        ('curves', '', 'WORK_DIR'),
        ('curves', 'nosuch', 'nosuch', 'scalars'),
        ('curves', 'ASSETS/empty', 'empty', 'scalars'),
        ('curves', 'ASSETS/text.txt', 'text.txt', 'scalars'),
        ('curves', 'ASSETS/classifier/run --out x.gif', 'gif'),
        ('curves', 'ASSETS/classifier/run ASSETS/classifier/run', 'twice'),
        ('curves', 'ASSETS/classifier/run --metric nosuch', 'nosuch'),
        ('tsne', '--out x.png', 'teacher|student|tap'),
        ('nosuch', '', 'nosuch'),
        ('', '', 'command'),
        *(
            ('attention', good.replace(old, new), *words)
            for old, new, *words in (
                ('stage3', 'stage9', 'stage9', 'stage3'),
                ('x.png', 'x.gif', 'gif'),
                ('x.png', 'ASSETS/text.txt/x.png', 'text.txt'),
                ('--images 4', '--images 1', 'images'),
                ('--images 4', '--images 999', 'images'),
                ('--images 4', '--seed -1', 'seed'),
                ('ASSETS/teacher.pth', 'nosuch.pth', 'nosuch.pth'),
                ('ASSETS/teacher_full.py', 'nosuch.py', 'nosuch.py'),
                ('ASSETS/classifier/cfg.py', 'nosuch.py', 'nosuch.py'),
                ('ASSETS/classifier/run/student.pth', 'ASSETS/other.pth', 'other.pth'),
                ('ASSETS/classifier/run/student.pth', 'ASSETS/text.pth', 'text.pth'),
                ('ASSETS/classifier/cfg.py', 'ASSETS/teacher.py', 'test_dataloader'),
                (
                    '--student ASSETS/classifier/cfg.py ASSETS/classifier/run/student.pth',
                    '--student ASSETS/classifier/cfg.py',
                    'student',
                ),
                ('backbone.stage3', 'head.fc', 'head.fc|maps'),
                ('ASSETS/teacher_full.py', 'ASSETS/study/tiny.py', 'tiny.py', 'model'),
                ('ASSETS/teacher_full.py', 'mmpretrain::resnet/nosuch.py', 'nosuch.py'),
                ('--images 4', '--student ASSETS/classifier/cfg.py ASSETS/classifier/run/student.pth', 'named'),
            )
        ),
        ('similarity', good + ' --classes 0', 'classes'),
        ('tsne', good.replace('stage3', 'nosuch'), 'nosuch'),
    ):
        yield line('visualize', [command, *arguments.split()] if command else [], *words)


def encodings() -> Iterator[Mistake]:
    latin = 'données'.encode('latin-1')
    yield edit(
        'classifier',
        "train_dataloader['dataset'].update(data_root='mine', ann_file='list.txt')",
        'list.txt|utf-8',
        prepare=copied(lambda f: (f / 'list.txt').write_bytes(b'class0/\xe9.png 0\n'), 'a list that is not UTF-8'),
    )
    yield line('train', [latin + b'.py'], 'donn')
    yield line('eval_reid', [latin + b'.npz'], 'donn')
    yield line('test', ['ASSETS/classifier/cfg.py', latin + b'.pth'], 'donn')
    for change, *words in (
        ("work_dir = 'é/run'\nmodel['neck']['type'] = 'é'", 'neck|type|registry|PYTHONUTF8'),
        ("load_from = 'données.pth'", 'donn', 'exist'),
        ("train_dataloader['dataset']['data_root'] = 'données'", 'donn'),
    ):
        yield edit('classifier', change, *words, ascii=True)
    yield edit('none', '', 'cfg.py|utf-8', prepare=written('model = dict(type="é")\n'.encode('latin-1')), ascii=True)
    yield edit('none', '', 'cfg.py', 'ZeroDivision', prepare=written('# données\nmodel = 1 / 0\n'), ascii=True)
    yield line('train', ['données.py'], 'donn', 'exist', ascii=True)
    yield edit('study', "methods['é'] = dict(terms=['nosuch'])", 'methods', tool='study', ascii=True)


KINDS = {
    'config file': config_files,
    'missing part': parts,
    'number': numbers,
    'class count': class_counts,
    'teacher': teachers,
    'any teacher': any_teacher,
    'without labels': without_labels,
    'source': sources,
    'term': terms,
    'labels': labels,
    'option': options,
    'data': data,
    'score': scores,
    'checkpoint': resumes,
    'launcher': launchers,
    'folder': folders,
    'command option': command_options,
    'watching': watching,
    'test.py': tests,
    'eval_reid.py': retrieval,
    'export.py': exports,
    'study.py': studies,
    'built on': built_on,
    'prepare_data.py': preparing,
    'benchmark.py': benchmarks,
    'visualize.py': pictures,
    'encoding': encodings,
}


# ---- measuring -------------------------------------------------------------------------------------------------------


class Bench:
    """Runs mistakes in folders of their own below a root.

    Args:
        root: Folder for everything.
        imports: What the fork server imports beside.

    Attributes:
        last: Folder of the last run.
    """

    last: Path

    def __init__(self, root: Path, imports: str = 'mmdet.models, mmdet.datasets, mmdet.evaluation') -> None:
        self._imports = imports
        self.root, self.assets = root, root / 'assets'
        self.assets.mkdir(parents=True)
        build_assets(self.assets)
        self.bases = bases(self.assets)
        self._servers: dict[bool, CommandLine] = {}
        self._count = 0

    def server(self, ascii_: bool = False) -> CommandLine:
        """Return the fork server of a locale."""
        if ascii_ not in self._servers:
            plain = dict(LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0') if ascii_ else {}
            # Without a network, the library of the hub would try five times, for half a minute.
            self._servers[ascii_] = CommandLine(plain | dict(HF_HUB_OFFLINE='1'), self._imports)
        return self._servers[ascii_]

    def close(self) -> None:
        """End the servers."""
        for server in self._servers.values():
            server.close()

    def good(self) -> None:
        """Run the good configs, whose checkpoints some mistakes need."""
        for name, text in self.bases.items():
            if name not in ('study', 'none'):
                folder = self.assets / name
                folder.mkdir()
                (folder / 'cfg.py').write_text(text)
                assert self.server()(folder, 'cfg.py') == 0, f'{name}: {(folder / "stderr").read_text()}'
        classifier_text = (self.assets / 'classifier/cfg.py').read_text()
        (self.assets / 'teacher_full.py').write_text(classifier_text + "model['backbone']['depth'] = 14\n")

    def run(self, mistake: Mistake) -> tuple[str, str]:
        """Return how a mistake ends and what is on stderr."""
        self._count += 1
        self.last = folder = self.root / f'{self._count:03}'
        folder.mkdir()
        if mistake.config:
            change = mistake.change.replace('ASSETS', str(self.assets))
            (folder / mistake.config).write_text(f'{self.bases[mistake.base]}{change}\n')
        if mistake.prepare:
            mistake.prepare(folder, self.assets)
        arguments = [x.replace('ASSETS', str(self.assets)) if isinstance(x, str) else x for x in mistake.arguments]
        if mistake.config:
            arguments.insert(0, mistake.config)
        server = self.server(mistake.ascii)
        server.start(folder, *arguments, tool=mistake.tool, environment=mistake.environment)
        status = server.wait(LIMIT)
        said = (folder / 'stderr').read_text(errors='replace')
        shutil.rmtree(folder / 'run', ignore_errors=True)
        return verdict(status, said, (folder / 'stdout').read_text(errors='replace'), mistake.words, self.assets), said


def verdict(status: int | None, stderr: str, stdout: str, words: Sequence[str], assets: Path) -> str:
    """Return how a run ended."""
    if status is None:
        return 'hung'
    if status == 0:
        return 'exit 0'
    lines = [x for x in stderr.splitlines() if x.strip()]
    # argparse's line stands below the usage.
    if lines and re.match(r'\S+\.py( \S+)?: error: ', lines[-1]) and stderr.startswith('usage:'):
        lines = lines[-1:]
    found = [x for x in lines if 'error: ' in x]
    if 'Traceback' in stderr + stdout or len(found) != 1 or found[0] != lines[-1] or len(lines) > 5:
        return 'traceback'
    text = found[0].replace(str(assets), 'ASSETS').lower()
    return 'clear' if all(any(x.lower() in text for x in word.split('|')) for word in words) else 'misleading'


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--all', action='store_true', help='all mistakes')
    parser.add_argument('--sample', type=int, help='so many, evenly spread')
    parser.add_argument('--kind', nargs='+', default=[], choices=KINDS)
    parser.add_argument('--match', help='only those whose line holds this')
    parser.add_argument('--show', action='store_true', help='also print what the clear ones say')
    args = parser.parse_args()
    chosen = [x for x in mistakes() if (args.all or x.kind in args.kind) and (args.match or '') in x.name]
    if args.sample:
        chosen = [chosen[i * len(chosen) // args.sample] for i in range(args.sample)]
    counts = {kind: collections.Counter() for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        bench.good()
        for number, mistake in enumerate(chosen, 1):
            began = time.monotonic()
            end, said = bench.run(mistake)
            counts[mistake.kind][end] += 1
            if end != 'clear' or args.show:
                last = [x for x in said.splitlines() if x.strip()][-1:]
                print(
                    f'{number:3} {end:10} {time.monotonic() - began:4.1f} s  {mistake.kind}: {mistake.name}\n'
                    f'      wants {list(mistake.words)}: {"".join(last)[:400]}',
                    flush=True,
                )
    ends = ('clear', 'misleading', 'traceback', 'exit 0', 'hung')
    print(f'{"":16}' + ''.join(f'{x:>12}' for x in ends))
    for kind, count in (*counts.items(), ('all', sum(counts.values(), collections.Counter()))):
        if count:
            print(f'{kind:16}' + ''.join(f'{count[x]:12}' for x in ends))


if __name__ == '__main__':
    main()
