"""Mutual learning and the native ensemble in two processes: gradients against one process, real runs.

Started once per rank with torch's usual environment variables and a folder that holds ``images``; leaves
``rank<r>.pth``.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from tiny import CLASSES, classification_config, classifier
from torch import nn

from kd_plugins.errors import UserError
from kd_plugins.registry import MODELS

MODEL_CONFIGS = dict(
    mutual=dict(type='kd_plugins.MutualLearning', student=classifier(), peers=2),
    ensemble=dict(type='kd_plugins.NativeEnsemble', student=classifier(), ramp=0),
)
WRAPPER = dict(type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None)


def build(name: str) -> nn.Module:
    """Return the same model in every process, in ``eval()``, since BatchNorm statistics differ between processes."""
    torch.manual_seed(3)
    model = MODELS.build(MODEL_CONFIGS[name])
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight)
        elif isinstance(module, nn.BatchNorm1d):
            nn.init.constant_(module.bias, 1.0)  # so that the gate's ReLU is not 0
    return model.eval()


def step(model: nn.Module, half: slice) -> tuple[dict, dict]:
    """Return losses and gradients of a part of the batch."""
    generator = torch.Generator().manual_seed(4)
    images = torch.randn(8, 3, 16, 16, generator=generator, dtype=torch.float64)[half]
    samples = [DataSample().set_gt_label(i % CLASSES) for i in range(8)][half]
    losses = model(images, samples, mode='loss')
    plain = getattr(model, 'module', model)
    plain.parse_losses(losses)[0].backward()
    return ({k: v.item() for k, v in losses.items()}, {k: p.grad for k, p in plain.named_parameters()})


def real_run(model: dict, folder: Path, name: str) -> dict:
    """Train on an image folder; the ranks have different seeds, and data-parallel makes their weights equal."""
    config = classification_config(
        folder / 'images', folder / name, model, 1, launcher='pytorch', model_wrapper_cfg=WRAPPER
    )
    config.train_dataloader.batch_size = 4
    config.randomness.diff_rank_seed = True
    runner = Runner.from_cfg(config)
    runner.train()
    return dict(iterations=runner.iter, parameters={k: v.detach() for k, v in runner.model.module.named_parameters()})


def main(folder: Path) -> None:
    """Run everything and save the results of this rank."""
    torch.set_num_threads(1)
    rank = int(os.environ['RANK'])
    torch.set_default_dtype(torch.float64)
    results: dict = dict(alone={}, together={}, own={}, real={})
    for name in MODEL_CONFIGS:
        results['alone'][name] = step(build(name), slice(None))[1]
    dist.init_process_group('gloo')
    for name in MODEL_CONFIGS:
        wrapped = MMDistributedDataParallel(build(name), broadcast_buffers=False)
        results['own'][name], results['together'][name] = step(wrapped, slice(4 * rank, 4 * rank + 4))
    torch.set_default_dtype(torch.float32)
    for name, model in MODEL_CONFIGS.items():
        results['real'][name] = real_run(model, folder, name)
    try:
        real_run(MODEL_CONFIGS['mutual'] | dict(update='alternating'), folder, 'alternating')
    except UserError as error:
        results['alternating'] = str(error)
    torch.save(results, folder / f'rank{rank}.pth')
    dist.barrier()
    dist.destroy_process_group()


if __name__ == '__main__':
    main(Path(sys.argv[1]))
