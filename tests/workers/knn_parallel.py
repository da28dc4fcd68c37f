"""Nearest neighbours in two processes, of an odd number of images.

Started once per rank with torch's usual environment variables and a folder that holds ``data`` and the teacher's
``distillation.pth``; leaves ``rank<r>.pth``.
"""

import datetime
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.runner import Runner
from tiny import neighbours_config, weights

import kd_plugins  # noqa: F401 - before mmpretrain is imported


def main(folder: Path) -> None:
    """Keep the accuracies of each process, and the weights that it has trained beside."""
    rank = int(os.environ['RANK'])
    torch.set_num_threads(1)
    dist.init_process_group('gloo', timeout=datetime.timedelta(seconds=60))
    distillation = torch.load(folder / 'distillation.pth', weights_only=False)
    config = neighbours_config(folder / 'data', folder / f'run{rank}', distillation, launcher='pytorch', epochs=1)
    config.model_wrapper_cfg = dict(type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None)
    runner = Runner.from_cfg(config)
    runner.train()
    scalars = runner.message_hub.log_scalars
    found = {key: x.data[0].tolist() for key, x in scalars.items() if 'knn' in key}
    torch.save(dict(found=found, weights=weights(runner.model.module)), folder / f'rank{rank}.pth')


if __name__ == '__main__':
    main(Path(sys.argv[1]))
