"""The process of one run; light to import, since every process imports it."""

import gc
import os
import runpy
import sys
import threading
from collections.abc import Sequence
from multiprocessing import connection, parent_process

from kd_plugins.commands import TOOLS

TRAIN = TOOLS / 'train.py'
# Imported once, by the server that every run is forked from.
PRELOAD = [
    'kd_plugins',
    'mmengine.runner',
    'mmpretrain.datasets',
    'mmpretrain.models',
    'mmpretrain.evaluation',
    'kd_plugins.hooks',
    'kd_plugins.losses',
    'kd_plugins.models',
    'kd_plugins.datasets',
    'kd_plugins.optim',
    'rich.table',
    'torch.utils.cpp_extension',
]


def _end_with(sentinel: int) -> None:
    """End this process when its parent has ended: the next call of the study starts the run again."""
    connection.wait([sentinel])
    os._exit(1)


def train(config: str, log: str, options: Sequence[str] = ()) -> None:
    """Train as ``python tools/train.py CONFIG --resume OPTIONS`` does, with its output in a file."""
    if (parent := parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(target, descriptor)
    gc.freeze()  # a collection would copy every page that is shared with the server
    sys.argv = [str(TRAIN), config, '--resume', *options]
    runpy.run_path(str(TRAIN), run_name='__main__')
