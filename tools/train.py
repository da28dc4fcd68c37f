"""Train a config, and first whatever it builds on.

    python tools/train.py configs/nst_voc.py

Six keys of a config are read by this command and not by mmengine's runner:

prepare   functions that make the data: dict(type='module.function', ...)
requires  runs that come first: dict(config='configs/x.py', checkpoint='work_dirs/x/student.pth'), in a config
          kd_plugins.config.trained('configs/x.py'); trained where the checkpoint is missing
compare   name='configs/y.py': other runs in the table that is printed at the end; trained where their result is missing
name      what this run is called in that table; by default its file
beside    True: those runs train while this one does, one after the other; what they print is in their logs alone
note      a text below that table, as over how many seeds the difference was checked
"""

import argparse
import importlib
import inspect
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

# Before torch is imported: idle threads that wait by spinning slow down what runs beside.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.runner import Runner
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import kd_plugins  # noqa: F401 - supplies mmcv's operators
from kd_plugins.checkpoint import read_checkpoint
from kd_plugins.config import check_config, load_config
from kd_plugins.engine import BACKENDS, alone_in, check_images, latest_checkpoint, leave_group, load_run
from kd_plugins.errors import UserError, one_line_errors
from kd_plugins.hooks.integrity_hook import changed_keys
from kd_plugins.options import add_launcher, add_run_options, add_watch
from kd_plugins.utils.signals import interrupted_by

_GRACE = 5.0  # seconds in which a run that has got the same signal ends by itself


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    add_run_options(parser, 'checkpoints and logs')
    add_launcher(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help="continue from a checkpoint, or from the run's newest; start a new run where there is none",
    )
    parser.add_argument('--amp', action='store_true', help='train under bfloat16 autocast, where the processor has it')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate by the batch size of all processes over the config's base_batch_size",
    )
    add_watch(parser, BACKENDS)
    parser.add_argument('--skip-corrupt', action='store_true', help='take another sample for an unreadable image')
    return parser.parse_args()


def scale_rate(config: Config) -> None:
    """Let mmengine scale the learning rate to the batch size.

    Raises:
        UserError: The config does not say for which batch size its rate is.
    """
    if (config.get('auto_scale_lr') or {}).get('base_batch_size') is None:
        raise UserError(
            f'--auto-scale-lr: {config.filename} does not say for which batch size its learning rate is: add '
            'auto_scale_lr = dict(base_batch_size=...)'
        )
    config.auto_scale_lr.enable = True


def prepare(config: Config) -> None:
    """Make the data that the config describes."""
    for call in config.get('prepare', []):
        arguments = dict(call)
        name = arguments.pop('type')
        module, _, function = name.rpartition('.')
        try:
            function = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(f"prepare: there is no function '{name}' ({error}); correct its type") from error
        try:
            inspect.signature(function).bind(**arguments)
        except TypeError as error:
            raise UserError(f'prepare: {name}: {error}; correct its options') from error
        function(**arguments)


def check_others(config: Config, above: tuple[str, ...] = ()) -> None:
    """Check the configs that a run requires, where they are not trained yet, and those that it is compared with.

    Raises:
        UserError: A config is missing or invalid, requires a run that requires it, or trains in the folder of such a
            run, or in another folder under the variables of this environment.
    """
    above += (os.path.realpath(path := config.filename), os.path.realpath(config.work_dir))
    missing = {x.config: x.checkpoint for x in config.get('requires', []) if not Path(x.checkpoint).is_file()}
    for other in [*missing, *config.get('compare', {}).values()]:
        try:
            check_config(required := load_config(other))
        except UserError as error:
            raise UserError(f'{path} names {other} under requires or compare: {error}') from error
        if other in missing:
            if os.path.realpath(required.filename) in above:
                raise UserError(f'{path} requires {other}, which requires it in turn: remove one of the two')
            here, there = (os.path.realpath(x) for x in (required.work_dir, Path(missing[other]).parent))
            if required.get('variant') and here != there:
                raise UserError(
                    f'{path} requires {missing[other]}, but {other} trains in {required.work_dir} under METHOD, '
                    'NETWORK and the like as they are in the environment: train it first, by a command of its own'
                )
            check_others(required, above)
            if os.path.realpath(required.work_dir) in above:
                raise UserError(f'{path} requires {other}, and both train in {required.work_dir}: rename one of them')


def command_of(config: str, flags: Sequence[str]) -> list[str]:
    """Return the command that trains another config; an interrupted run is resumed."""
    return [sys.executable, __file__, config, '--resume', *flags]


def train_apart(config: str, flags: Sequence[str]) -> None:
    """Train another config in a process of its own."""
    print_log(f'training {config} first', 'current')
    with interrupted_by(signal.SIGTERM, signal.SIGHUP):
        running = subprocess.Popen(command_of(config, flags))
        try:
            status = running.wait()
        except KeyboardInterrupt:
            try:  # a terminal's Ctrl-C reaches it too: it stops its own, and prints how to continue
                running.wait(timeout=_GRACE)
            except subprocess.TimeoutExpired:
                running.terminate()
                running.wait()
                raise KeyboardInterrupt from None
            raise SystemExit(130) from None
    if status:
        raise UserError(f'{config}, which this run builds on, failed: see its error above')


def train_once(config: str, flags: Sequence[str], trained: Callable[[], object]) -> None:
    """Train another config, if it is not trained; of several commands that need it, one does, and the others wait."""
    folder = load_config(config).work_dir
    with alone_in(folder, file='.turn', until=trained):
        with alone_in(folder, until=trained):  # a command of its own may train it
            pass
        if not trained():
            train_apart(config, flags)


def train_missing(config: Config, launcher: str, flags: Sequence[str]) -> None:
    """Train what the config requires, where its checkpoint is missing."""
    for other in config.get('requires', []):
        if Path(other.checkpoint).is_file():
            note_changes(other.config, other.checkpoint)
        else:
            if launcher != 'none':
                raise UserError(f'{other.checkpoint} is missing: make it first, with kd-train {other.config}')
            train_once(other.config, flags, Path(other.checkpoint).is_file)
        if not Path(other.checkpoint).is_file():
            raise UserError(
                f'{other.config} was trained but left no {other.checkpoint}: requires names another '
                'folder than that config writes to, or that config has no ExportHook'
            )


def note_changes(path: str, checkpoint: str) -> None:
    """Log where a run that is there already was trained with another config than its file describes now."""
    try:
        config, meta = load_config(path), read_checkpoint(checkpoint).get('meta')
    except UserError:  # a checkpoint without its config; one that cannot be read is reported where it is used
        return
    folder = os.path.dirname(checkpoint)
    if not isinstance(meta, dict) or os.path.realpath(config.work_dir) != os.path.realpath(folder):  # another METHOD
        return
    check_images(config)  # as the run did, which is compared
    if changed := changed_keys(meta, config):
        print_log(
            f'{checkpoint} was trained with another {" and ".join(changed)} than {path} has now: remove {folder} to '
            'train it again',
            'current',
            logging.WARNING,
        )


def set_resume(config: Config, resume: str | None) -> None:
    """Set the checkpoint that the runner resumes from."""
    if resume == 'auto' or (resume is None and config.get('resume') and not config.get('load_from')):
        config.resume, resume = False, latest_checkpoint(config)
    if resume is not None:
        config.resume, config.load_from = True, resume


def read_result(folder: str | Path) -> dict[str, Any] | None:
    """Return the content of a run's ``result.json``; None where it is missing or incomplete."""
    try:
        result = json.loads(Path(folder, 'result.json').read_text())
        return result if {'metrics', 'checkpoint', 'log'} <= result.keys() and dict(result['metrics']) else None
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return None


@contextmanager
def compared_beside(config: Config, flags: Sequence[str]) -> Iterator[None]:
    """Train the runs to compare with, where their result is missing, while the block runs; wait for them at its end.

    Where one fails, none follows: :func:`print_comparison` starts it again, and shows why.
    """
    missing = [path for path in config.compare.values() if read_result(load_config(path).work_dir) is None]
    if not missing:
        yield
        return
    print_log(f'training beside this run, one after the other: {", ".join(missing)}', 'current')
    running = subprocess.Popen(
        ['sh', '-c', ' && '.join(shlex.join(command_of(path, flags)) for path in missing)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with interrupted_by(signal.SIGTERM, signal.SIGHUP):  # a kill, or a terminal that closes, shall stop them too
        try:
            yield
            print_log('waiting for the runs to compare with', 'current')
            running.wait()
        except BaseException:
            os.killpg(running.pid, signal.SIGTERM)  # a shell's background jobs ignore SIGINT
            running.wait()
            raise


def print_comparison(config: Config, flags: Sequence[str]) -> None:
    """Train the runs to compare with, where their result is missing, and print a table of all last metrics."""
    folders = {}
    for name, path in config.compare.items():
        folder = load_config(path).work_dir
        if read_result(folder) is None and config.launcher != 'none':
            print_log(
                f'{path}, to compare with, has no result: make it with kd-train {path}', 'current', logging.WARNING
            )
            continue
        train_once(path, flags, partial(read_result, folder))
        note_changes(path, os.path.join(folder, 'student.pth'))
        folders[name] = folder
    folders[str(config.get('name', Path(config.filename).stem))] = config.work_dir
    results = {}
    for name, folder in folders.items():
        result = read_result(folder)
        if result is None:
            raise UserError(
                f'{name} has left no metrics to compare: its config needs an ExportHook, and '
                'val_dataloader, val_cfg and val_evaluator'
            )
        results[name] = result
    metrics = [
        key
        for key, value in next(iter(results.values()))['metrics'].items()
        if key not in ('epoch', 'iter') and isinstance(value, (int, float))
    ]
    groups = {key.rpartition('/')[0] for key in metrics}
    names = [key.rpartition('/')[2] for key in metrics] if len(groups) == 1 else metrics
    table = Table('run', *map(escape, names), 'checkpoint', 'log')
    for name, result in results.items():
        values = [result['metrics'].get(key) for key in metrics]
        values = [f'{value:.4g}' if isinstance(value, (int, float)) else '–' for value in values]
        table.add_row(*map(escape, [name, *values, *(os.path.relpath(result[key]) for key in ('checkpoint', 'log'))]))
    console = Console(width=max(160, 80 + 12 * len(metrics), Console().width), soft_wrap=True)
    console.print(table)
    if note := config.get('note'):
        console.print(note, markup=False)


def main() -> None:
    """Run the command line."""
    args = parse_args()
    config = load_run(args.config, args, 'train')
    if args.auto_scale_lr:
        scale_rate(config)
    check_others(config)
    flags = [f'--{name}' for name in ('amp', 'skip-corrupt', 'allow-pickle') if getattr(args, name.replace('-', '_'))]
    with alone_in(config.work_dir, args.launcher):
        prepare(config)
        beside = config.get('compare') and config.get('beside') and args.launcher == 'none'
        with compared_beside(config, flags) if beside else nullcontext():
            train_missing(config, args.launcher, flags)
            set_resume(config, args.resume)
            Runner.from_cfg(config).train()
        if config.get('compare') and is_main_process():
            print_comparison(config, flags)
    leave_group()


if __name__ == '__main__':
    with one_line_errors('stopped by Ctrl-C; continue with --resume'):
        main()
