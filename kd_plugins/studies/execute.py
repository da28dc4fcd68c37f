"""Makes the missing runs of a study, several at once."""

import json
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from kd_plugins.distillation.distillation import DIVERGED
from kd_plugins.errors import UserError
from kd_plugins.studies.plan import Study
from kd_plugins.studies.results import metrics_of, shown
from kd_plugins.studies.run import Run
from kd_plugins.studies.worker import PRELOAD, TRAIN, train
from kd_plugins.utils.files import write_text
from kd_plugins.utils.signals import interrupted_by

_SESSION = '--- a session starts\n'  # in the log of a run, which all its sessions write


class Launcher(Protocol):
    """Starts runs and returns those that have ended."""

    def start(self, run: Run) -> Any:
        """Start a run; return its handle."""

    def wait(self, handles: Sequence[Any], seconds: float) -> list[tuple[Any, int]]:
        """Return the handles of ended runs, with their exit status, after at most so many seconds."""

    def stop(self, handles: Sequence[Any]) -> None:
        """Stop the runs that have not ended."""


class LocalLauncher:
    """Processes of this machine, forked from a server that has imported everything and computed nothing.

    Where there is a GPU, each starts anew: CUDA, which some imports look for, works in no fork.

    Args:
        threads: Threads of a run. Matrix libraries read the number when they are loaded.
        exported: Whether a number in the environment takes precedence.
        options: More options of ``train.py``.
    """

    def __init__(self, threads: int, exported: bool = False, options: Sequence[str] = ()) -> None:
        self._options = options
        for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'):
            if not exported or name not in os.environ:
                os.environ[name] = str(threads)
        self._context: Any = multiprocessing.get_context('spawn' if torch.cuda.is_available() else 'forkserver')
        self._context.set_forkserver_preload(PRELOAD)

    def start(self, run: Run) -> BaseProcess:
        """Start a process for the run."""
        paths = str(run.folder / 'config.py'), str(run.folder / 'log.txt')
        process = self._context.Process(target=train, args=(*paths, self._options))
        process.start()
        return process

    def wait(
        self,
        handles: Sequence[BaseProcess],
        seconds: float,
    ) -> list[tuple[BaseProcess, int]]:
        """Wait for the processes' sentinels."""
        ended = connection.wait([handle.sentinel for handle in handles], seconds)
        done = [handle for handle in handles if handle.sentinel in ended]
        for handle in done:
            handle.join()
        return [(handle, handle.exitcode or 0) for handle in done]

    def stop(self, handles: Sequence[BaseProcess]) -> None:
        """Terminate the processes, and kill those that go on for ten seconds."""
        for handle in handles:
            handle.terminate()
        for handle in handles:
            handle.join(10)
            if handle.is_alive():
                handle.kill()
                handle.join()


class RayLauncher:
    """Tasks of a Ray cluster whose machines share the working folder.

    Args:
        threads: CPUs that a run reserves, and its number of threads.
        gpus: GPUs that a run reserves.
        options: More options of ``train.py``.

    Raises:
        UserError: Ray is not installed.
    """

    def __init__(self, threads: int, gpus: float, options: Sequence[str] = ()) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError(
                "--launcher ray needs Ray (pip install ray, or this package's extra study-cluster): leave the option "
                'out to run on this machine'
            ) from error
        self._ray = ray
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        folder = os.getcwd()

        def task(config: str, log: str) -> int:
            environment = os.environ | dict(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
            with open(os.path.join(folder, log), 'a') as output:
                return subprocess.run(
                    [sys.executable, str(TRAIN), config, '--resume', *options],
                    cwd=folder,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    check=False,
                ).returncode

        # A run that fails is reported; one whose machine is lost goes on elsewhere.
        self._task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=2)(task)

    def start(self, run: Run) -> Any:
        """Submit the run."""
        return self._task.remote(str(run.folder / 'config.py'), str(run.folder / 'log.txt'))

    def wait(self, handles: Sequence[Any], seconds: float) -> list[tuple[Any, int]]:
        """Ask Ray for finished tasks."""
        done, _ = self._ray.wait(list(handles), num_returns=1, timeout=seconds)
        ended = []
        for handle in done:
            try:
                ended.append((handle, self._ray.get(handle)))
            except self._ray.exceptions.RayError:
                ended.append((handle, 1))
        return ended

    def stop(self, handles: Sequence[Any]) -> None:
        """Cancel the tasks."""
        for handle in handles:
            self._ray.cancel(handle, force=True)


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on, and the commit where the package is a working tree."""
    found = {}
    for package in ('torch', 'onedl-mmengine', 'onedl-mmpretrain', 'kd_plugins'):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = 'not installed as a package'
    git = ['git', '-C', str(TRAIN.parent)]
    try:
        # An installed package may lie in the working tree of another project.
        subprocess.run([*git, 'ls-files', '--error-unmatch', TRAIN.name], capture_output=True, check=True)
        commit = subprocess.run([*git, 'rev-parse', 'HEAD'], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(
            [*git, 'status', '--porcelain', '--untracked-files=no'], capture_output=True, text=True, check=True
        ).stdout.strip()
        found['commit'] = commit + (' with changes' if dirty else '')
    except (OSError, subprocess.CalledProcessError):
        found['commit'] = 'unknown'
    return found


def last_error(run: Run, status: int) -> str:
    """Return the line of a failed run's log that gives the reason: its last error, or else its last line."""
    if status < 0:
        return f'killed by signal {-status}'
    log = (run.folder / 'log.txt').read_text(errors='replace').rpartition(_SESSION)[2]
    lines = [x.strip() for x in log.splitlines() if x.strip()]
    errors = [x for x in lines if x.startswith('error: ')]
    return (errors or lines or ['no output'])[-1]


def check_unchanged(runs: Sequence[Run], changed: str) -> None:
    """Keep, clear or refuse folders with runs of another config or other files; the caller holds the study.

    Only finished runs are kept: an interrupted one would continue with another config, or other teachers, than it
    began with, and so starts from scratch; as do all runs of a search that has not found its weight. A run that waits
    for a weight is compared once that is known.

    Raises:
        UserError: There are such folders, and ``changed`` is 'stop'.
    """
    others = [run for run in runs if run.changed]
    if others and changed == 'stop':
        raise UserError(
            f'{len(others)} runs were made with another config or other files than the study now has, the first in '
            f'{others[0].folder}: give --changed redo to make them again, --changed keep to use the '
            'finished ones as they are, or another --root'
        )
    for run in runs:
        done = run.finished and (run.part != 'search' or run.search is None or run.search.best is not None)
        if (
            run in others
            if changed == 'redo'
            else run.record
            and not (run.waits or done)
            and (run.record.get('digest', run.actual_digest) != run.actual_digest or run.replaced)
        ):
            _clear(run)


def _clear(run: Run) -> None:
    """Empty a run's folder but for a first stage in it; ``run.json`` goes last: a kill leaves the run changed."""
    first = {needed.folder for needed in run.needs}
    for path in sorted(run.folder.iterdir(), key=lambda path: path.name == 'run.json'):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        elif path not in first:
            shutil.rmtree(path)


class Execution:
    """Makes the missing ones of some runs.

    Args:
        study: The study.
        runs: The runs to make, each after those that it needs.
        launcher: Starts them.
        jobs: Number of runs at once.
        changed: What to do with runs of another config that had to wait for a weight, as :func:`check_unchanged` did
            with the others; 'stop' keeps those that are finished, for the caller to report.
    """

    def __init__(self, study: Study, runs: Sequence[Run], launcher: Launcher, jobs: int, changed: str = 'stop') -> None:
        self._study, self._launcher, self._jobs = study, launcher, jobs
        self._runs = runs
        self._changed = 'redo' if changed == 'redo' else 'keep'
        self._searches = list(dict.fromkeys(run.search for run in runs if run.search is not None))
        # They start from a run whose own weight is searched.
        self._later = [x for x in self._searches if any(run.waits for run in x.runs.values())]
        # The runs of a search wait from round to round.
        self._waiting = [run for run in runs if run.part != 'search' and (run.waits or not run.finished)]
        self._active: dict[Any, tuple[Run, float]] = {}
        self._versions = versions()
        self._console = Console(soft_wrap=True)
        self.failed: dict[Run, str] = {}

    def run(self) -> None:
        """Make all runs; after an interrupt or SIGTERM, which stops them, the next call continues.

        Raises:
            UserError: A result lacks the study's metric.
            KeyboardInterrupt: Ctrl-C, or SIGTERM.
        """
        for run in self._runs:
            if run.finished and run.part != 'first':
                metrics_of(self._study, run)
        columns = (
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn('{task.fields[left]}'),
        )
        with Progress(*columns, console=self._console) as progress:
            others = sum(run.part != 'search' for run in self._runs)
            scores = [x for search in self._searches for scored in search.rounds for x in scored.values()]
            bar = progress.add_task(
                self._study.name,
                total=others + sum(sum(search.sizes) for search in self._searches),
                left='',
                completed=others - len(self._waiting) + sum(x is not None for x in scores),
            )
            with interrupted_by(signal.SIGTERM):
                try:
                    while self._waiting or self._active:
                        self._start_ready()
                        if not self._active:
                            break
                        for handle, status in self._launcher.wait(list(self._active), 2.0):
                            run, began = self._active.pop(handle)
                            self._finish(run, status, time.time() - began, progress)
                            progress.advance(bar)
                        progress.update(bar, left=self._time_left())
                finally:
                    self._launcher.stop(list(self._active))
                    for run, began in self._active.values():
                        self._record(run, 'stopped', time.time() - began)

    def _ready(self, run: Run) -> bool:
        return not run.waits and all(needed.finished and needed not in self._waiting for needed in run.needs)

    def _start_ready(self) -> None:
        active = {run for run, _ in self._active.values()}
        known = {*self._waiting, *active, *self.failed}
        # A run that has written its score may still be at work, up to the end that it began with.
        searches = [search for search in self._searches if active.isdisjoint(search.runs.values())]
        for search in [x for x in self._later if all(map(self._ready, x.runs.values()))]:
            self._later.remove(search)
            check_unchanged([*search.runs.values()], self._changed)
        self._waiting[:0] = [run for search in searches for run in search.advance() if run not in known]
        for run in list(self._waiting):
            if len(self._active) >= self._jobs:
                return
            searched = [*run.search.runs.values()] if run.search is not None and run.waits else []
            if run.problem:
                self._waiting.remove(run)
                self.failed[run] = run.problem
            elif lost := [needed for needed in (*run.needs, *searched) if needed in self.failed]:
                self._waiting.remove(run)
                self.failed[run] = f'not started, since {lost[0].name} failed'
            elif run.search is not None and run.search.diverged:
                self._waiting.remove(run)
                self.failed[run] = 'not started, since every weight of its search diverged: give it smaller ones'
            elif self._ready(run):
                self._waiting.remove(run)
                if run.part != 'search':
                    run.take_weight()
                    check_unchanged([run], self._changed)
                    if run.finished:  # it has only waited
                        continue
                elif run.reached > (run.until or 0):
                    # The round is new, as of a list that has grown, and the run has gone past its end without a score.
                    _clear(run)
                run.folder.mkdir(parents=True, exist_ok=True)
                write_text(run.folder / 'config.py', run.text)
                write_text(
                    run.folder / 'run.json',
                    json.dumps(
                        dict(
                            study=self._study.name,
                            network=run.network,
                            corruption=run.corruption,
                            method=run.method,
                            seed=run.seed,
                            part=run.part,
                            digest=run.actual_digest,
                            files=run.files,
                            versions=self._versions,
                            sessions=[*run.sessions, dict(began=time.time(), versions=self._versions)],
                        ),
                        indent=2,
                    )
                    + '\n',
                )
                with (run.folder / 'log.txt').open('a') as log:
                    log.write(_SESSION)
                self._active[self._launcher.start(run)] = run, time.time()

    def _record(self, run: Run, status: str, seconds: float) -> None:
        record = run.record
        if record.get('sessions'):
            record['sessions'][-1] |= dict(status=status, seconds=round(seconds, 2))
            write_text(run.folder / 'run.json', json.dumps(record, indent=2) + '\n')
        write_text(run.folder / 'config.py', run.text)  # the runner's may name the checkpoint that it resumed from

    def _finish(self, run: Run, status: int, seconds: float, progress: Progress) -> None:
        if not status and not run.finished:
            status = 1
        if status and run.part == 'search' and DIVERGED in (reason := last_error(run, status)):
            self._record(run, 'diverged', seconds)
            progress.console.print(f'{run.name}: left out: {reason}', markup=False, highlight=False)
            return
        self._record(run, 'failed' if status else 'finished', seconds)
        if status:
            self.failed[run] = last_error(run, status)
            progress.console.print(f'{run.name}: failed: {self.failed[run]}', markup=False, highlight=False)
            return
        if run.part == 'search' and run.search is not None and run.search.score(run, run.until) is None:
            self.failed[run] = (
                f"its scalars.json has no '{run.search.metric}' of epoch {run.until}: a search needs a LoggerHook"
            )
            return
        value = (
            ''
            if run.part == 'first'
            else f'{shown(self._study, metrics_of(self._study, run)[self._study.options["metric"]]):.2f} '
        )
        progress.console.print(
            f'{run.name}: {value}in {seconds:.0f} s, {len(self._waiting) + len(self._active)} to go{self._time_left()}',
            markup=False,
            highlight=False,
        )

    def _time_left(self) -> str:
        """Estimate the time left from the finished runs of the same network, or else from all."""
        seconds: dict[tuple[str, str], list[float]] = {}
        for run in self._study.runs:
            if run.finished and run.seconds:
                share = run.epoch if run.part == 'search' else 1  # of one epoch, where a run has rounds
                seconds.setdefault((run.network, run.part), []).append(run.seconds / share)
        if not seconds:
            return ''
        overall = statistics.fmean(x for values in seconds.values() for x in values)

        def expected(run: Run) -> float:
            share = (run.until or 0) - run.epoch if run.part == 'search' else 1
            return share * statistics.fmean(seconds.get((run.network, run.part), [overall]))

        now = time.time()
        left = sum(map(expected, self._waiting))
        left += sum(max(expected(run) - (now - began), 0) for run, began in self._active.values())
        minutes, rest = divmod(round(left / self._jobs), 60)
        return f', {minutes // 60} h {minutes % 60} min left' if minutes >= 60 else f', {minutes} min {rest} s left'
