"""A study of networks of a second, on tiny data in the official layout."""

import json
import pickle
from pathlib import Path

import numpy as np

from kd_plugins.datasets.cifar import CIFAR10

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / 'tools'

NETWORK = """
_base_ = {root!r}
model = dict(
    type='ImageClassifier', backbone=dict(type='kd_plugins.CifarResNet', depth=8, width=4),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=16, loss=dict(type='CrossEntropyLoss', loss_weight=1.)))
data_preprocessor = dict(num_classes=10, mean=[120.0] * 3, std=[60.0] * 3, to_rgb=False)
train_dataloader = dict(
    batch_size=20, num_workers=0, collate_fn=dict(type='kd_plugins.whole_batch'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='kd_plugins.BatchedImages', padding=4, flip_prob=0.5, dataset=dict(
        type='kd_plugins.CIFAR10', data_root={data!r}, split='train')))
val_dataloader = dict(
    batch_size=20, num_workers=0, collate_fn=dict(type='kd_plugins.whole_batch'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='kd_plugins.BatchedImages', dataset=dict(
        type='kd_plugins.CIFAR10', data_root={data!r}, split='test')))
val_evaluator = dict(type='Accuracy', topk=(1, ))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9))
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=1)
val_cfg = dict()
default_hooks = dict(logger=dict(interval=1))
"""
STUDY = """
teachers = dict(big=dict(config='net.py', overrides=dict(model=dict(backbone=dict(depth=14)))))
networks = dict(small=dict(config='net.py', teacher='big'))
methods = {{
    'Baseline': dict(),
    'Hinton': dict(terms=['kd_alpha'], overrides=dict(model=dict(head=dict(loss=dict(loss_weight=0.1))))),
    'Two stages': dict(first=dict(hook=dict(task=False), terms=[dict(
        name='hint', loss=dict(type='kd_plugins.FitNetLoss'), adapter='auto', student='backbone.stage2',
        teacher='backbone.stage2')]), terms=['kd']),
}}
corruptions = {{'clean': dict(), 'sigma=0.4': dict(label_noise=dict(rate=0.4))}}
common = dict(model=dict(head=dict(cal_acc=True)))
seeds = [0, 1]
terms_from = {methods!r}
references = [dict(network='small', table=\'\'\'
method    clean      sigma=0.4
Hinton    90.0±0.5   80.0 ± 1.0
Teacher   95.0       94.0
\'\'\')]
"""


def write_cifar(root: Path, per_file: int = 20) -> None:
    """Write the official layout; a picture's brightness tells its class."""
    rng = np.random.default_rng(0)
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    for name, _ in CIFAR10.train_list + CIFAR10.test_list:
        labels = np.arange(per_file) % 10
        data = rng.integers(0, 60, (per_file, 3072)) + 19 * labels[:, None]
        entry = {'data': data.astype(np.uint8), 'labels': labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(entry, protocol=2))


def write_study(folder: Path, data: Path, more: str = '') -> Path:
    base = ROOT / 'configs/_base_/default_runtime.py'
    (folder / 'net.py').write_text(NETWORK.format(root=str(base), data=str(data)))
    path = folder / 'tiny.py'
    path.write_text(STUDY.format(methods=str(ROOT / 'configs/_base_/methods.py')) + more)
    return path


FEW = """
methods = {'Baseline': dict(), 'KD': dict(terms=['kd']), 'AT': dict(terms=['kd_alpha'])}
corruptions = {'clean': dict()}
seeds = [0]
"""


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / 'result.json').read_text())['metrics']
