"""Command lines of tools/ and tests/workers/, each run by a fork of a server that has imported what they import."""

import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

TOOLS = Path(__file__).parents[1] / 'tools'

# Imports what every run imports, once; then each line on stdin is a command line, run by forks, one for each process.
FORK_SERVER = """
import atexit, gc, json, os, resource, runpy, signal, sys, threading
answers = os.fdopen(os.dup(1), 'w')
os.dup2(2, 1)  # the imports print
import kd_plugins
import mmengine.runner, mmpretrain.datasets, mmpretrain.models, kd_plugins.hooks, kd_plugins.losses
import rich.table, torch.utils.cpp_extension
gc.freeze()  # a collection in the fork would copy every page
sys.stdout.flush()  # else each fork writes what the imports have printed
for line in sys.stdin:
    if not line.strip():  # the end; a worker of a data loader may hold the other end of the pipe open
        break
    job = json.loads(line)
    pids = []
    for rank, environment in enumerate(job['environments']):
        pids.append(os.fork())
        if not pids[-1]:
            os.setsid()
            os.chdir(job['folder'])
            os.environ.update(environment)
            for number, name in ((0, os.devnull), (1, 'stdout'), (2, 'stderr')):
                name += str(rank) if rank and number else ''
                os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
            sys.path[:0] = [os.path.dirname(job['argv'][0]), '']
            signal.signal(signal.SIGINT, signal.default_int_handler)
            resource.setrlimit(resource.RLIMIT_FSIZE, (job['limit'], resource.RLIM_INFINITY))
            sys.argv = [os.fsdecode(bytes(x)) if isinstance(x, list) else x for x in job['argv']]
            status = 0
            try:
                runpy.run_path(sys.argv[0], run_name='__main__')
            except SystemExit as end:
                if isinstance(end.code, str):
                    raise
                status = end.code or 0
            # As Python ends, but for taking down every module, each page of which would be copied first.
            threading._shutdown()
            atexit._run_exitfuncs()
            gc.collect()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(pids[0], file=answers, flush=True)
    left, codes = {*pids}, []
    while left:
        pid, status = os.wait()
        left.discard(pid)
        codes.append(os.waitstatus_to_exitcode(status))
        if codes[-1]:  # the others could wait for this one for ever
            for other in left:
                try:
                    os.killpg(other, signal.SIGKILL)
                except ProcessLookupError:  # it has no group yet
                    os.kill(other, signal.SIGKILL)
    print(next(filter(None, codes), 0), file=answers, flush=True)
"""


def two_ranks() -> list[dict[str, str]]:
    """Return the variables of two processes that find each other, as torchrun sets them, and no GPU."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    group = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE='2', CUDA_VISIBLE_DEVICES='')
    return [dict(group, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]


class CommandLine:
    """Runs ``python tools/<tool>.py ...``; its output is in ``stdout`` and ``stderr`` of the folder.

    That of a second process is in ``stdout1`` and ``stderr1``. Another script is run by its path.

    Args:
        environment: Variables of the server, beside this process's.
        imports: Modules that it imports too.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, imports: str = '') -> None:
        code = FORK_SERVER.replace('gc.freeze()', f'import {imports}\ngc.freeze()' if imports else 'gc.freeze()')
        self.server = subprocess.Popen(
            [sys.executable, '-c', code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ
            | dict(OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), str(TOOLS.parent)]))
            | (environment or {}),
        )
        self._process = None

    def start(
        self, folder, *arguments, tool='train', limit=resource.RLIM_INFINITY, environment=None, ranks=({},)
    ) -> int:
        """Start a command line in a folder, with a process for each rank's variables; return the first, a group's."""
        arguments = [list(x) if isinstance(x, bytes) else str(x) for x in arguments]
        job = dict(
            folder=str(folder),
            limit=limit,
            environments=[(environment or {}) | rank for rank in ranks],
            argv=[str((TOOLS / tool).with_suffix('.py')), *arguments],
        )
        self.server.stdin.write(json.dumps(job).encode() + b'\n')
        self._process = self._answer()
        return self._process

    def wait(self, seconds: float | None = None) -> int | None:
        """Return the exit status, of several the first that is not 0.

        None after so many seconds, when the process group has been killed.
        """
        if not select.select([self.server.stdout], [], [], seconds)[0]:
            os.killpg(self._process, signal.SIGKILL)
            self._answer()
            return None
        return self._answer()

    def __call__(self, folder, *arguments, **options) -> int:
        self.start(folder, *arguments, **options)
        return self.wait()

    def close(self) -> None:
        """End the server."""
        self.server.stdin.write(b'\n')
        self.server.stdin.close()
        self.server.wait()

    def _answer(self) -> int:
        line = b''
        while not line.endswith(b'\n'):
            byte = self.server.stdout.read(1)
            assert byte, 'the fork server is gone'
            line += byte
        return int(line)
