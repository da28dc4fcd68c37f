"""Re-identification in two processes: the command line that scores features, training, the evaluation of an odd number
of images, the triplet loss.

Started once per rank with torch's usual environment variables and a folder that holds ``data``, ``config.py``,
``model.pth``, ``drawn.npz`` and ``one_item.npz``; leaves ``rank<r>.pth``.
"""

import contextlib
import io
import json
import os
import runpy
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from tiny import reid_config

from kd_plugins.models import ReIDHead

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / 'configs/_base_/default_runtime.py'


def printed_scores(folder: Path) -> list[dict | None]:
    """Return the scores that the command line prints in this process, if it does; the group stays for what follows."""
    main = runpy.run_path(str(ROOT / 'tools' / 'eval_reid.py'))['main']
    main.__globals__['leave_group'] = lambda: None
    scores = []
    for names, *options in (
        (['config.py', 'model.pth'],),
        (['drawn.npz'], '--expand', '2', '--rerank', '--k1', '4', '--k2', '2'),
        (['one_item.npz'],),
    ):
        with contextlib.redirect_stdout(io.StringIO()) as output:
            main([*(str(folder / name) for name in names), *options, '--launcher', 'pytorch'])
        scores.append(json.loads(output.getvalue().splitlines()[-1]) if output.getvalue() else None)
        main.__globals__['join_group'] = lambda launcher: None
    return scores


def triplet_gradient(rank: int, together: bool) -> torch.Tensor:
    """Return the gradient of the triplet loss; with ``together``, each process has half of the batch."""
    torch.manual_seed(0)
    x, weight = torch.randn(12, 5, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 3])
    head = ReIDHead(num_classes=4, in_channels=4).double()
    if together:
        half = slice(6 * rank, 6 * rank + 6)
        x, labels = x[half], labels[half]
    samples = [DataSample().set_gt_label(int(label)) for label in labels]
    head.loss((x @ weight,), samples)['loss_triplet'].backward()
    if together:
        dist.all_reduce(weight.grad)
        weight.grad /= 2
    return weight.grad


def main(folder: Path) -> None:
    rank = int(os.environ['RANK'])
    alone = triplet_gradient(rank, together=False)
    scores = printed_scores(folder)
    results = dict(scores=scores, alone=alone, together=triplet_gradient(rank, together=True))
    config = reid_config(folder / 'data', folder / 'run', load_from=str(folder / 'model.pth'), launcher='pytorch')
    config.model_wrapper_cfg = dict(type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None)
    config.test_evaluator.save_to = str(folder / 'together.npz')
    results['metrics'] = Runner.from_cfg(config).test()
    config = reid_config(folder / 'data', folder / 'trained', launcher='pytorch', epochs=1)
    config.model_wrapper_cfg = dict(type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None)
    config.train_dataloader.sampler.identities = 2
    config.train_dataloader.batch_size = 8
    config.default_hooks.sync_buffers = Config.fromfile(RUNTIME).default_hooks.sync_buffers
    config.val_evaluator.save_to = str(folder / 'validated.npz')
    Runner.from_cfg(config).train()
    torch.save(results, folder / f'rank{rank}.pth')


if __name__ == '__main__':
    main(Path(sys.argv[1]))
