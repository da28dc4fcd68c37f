"""A probe on a frozen backbone in two processes under data-parallel.

Started once per rank with torch's usual environment variables and the folder for the results, ``rank<r>.pth``.
"""

import datetime
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.runner import Runner
from tiny import classification_config, image_folder, weights


class Start(Hook):
    """Records the initial weights."""

    def before_train(self, runner: Runner) -> None:
        self.weights = weights(runner.model.module)


if __name__ == '__main__':
    folder, rank = Path(sys.argv[1]), int(os.environ['RANK'])
    torch.set_num_threads(1)
    dist.init_process_group('gloo', timeout=datetime.timedelta(seconds=60))
    data = folder / f'data{rank}'
    image_folder(data)
    config = classification_config(
        data,
        folder / f'run{rank}',
        custom_hooks=[dict(type='kd_plugins.FreezeHook', modules=['backbone'])],
        launcher='pytorch',
        model_wrapper_cfg=dict(type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None),
    )
    runner, start = Runner.from_cfg(config), Start()
    runner.register_hook(start)
    runner.train()
    torch.save(
        dict(start=start.weights, end=weights(runner.model.module), iterations=runner.iter), folder / f'rank{rank}.pth'
    )
