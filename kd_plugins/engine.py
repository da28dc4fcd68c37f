"""What every command does before a run: reads its config, checks it, and prepares config and process for the runner."""

import argparse
import fcntl
import gc
import itertools
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.dist import init_dist
from mmengine.logging import print_log
from mmengine.runner import Runner

from kd_plugins.checkpoint import RUN_ID, UnreadableError, guard_checkpoints, read_checkpoint, run_of
from kd_plugins.config import check_config, load_config, walk
from kd_plugins.errors import UserError
from kd_plugins.registry import type_name
from kd_plugins.utils.memory import keep_freed_memory


def load_run(path: str, args: argparse.Namespace, part: str) -> Config:
    """Read the config of a run, check it, and make it and this process ready for mmengine's runner.

    Args:
        path: The config.
        args: The options of the command, see :func:`kd_plugins.options.add_run_options`.
        part: What the run does, 'train', 'test' or 'export'.

    Raises:
        UserError: As :func:`~kd_plugins.config.load_config`, :func:`~kd_plugins.config.check_config` and
            :func:`prepare_run`.
    """
    config = load_config(path, args.work_dir, args.cfg_options)
    check_config(config, part)
    if (backends := getattr(args, 'watch', None)) is not None:
        watch(config, backends)
    if part != 'export':
        check_backends(config)
    if part != 'train':  # the command names the checkpoint
        config.load_from, config.resume = None, False
    prepare_run(config, args.launcher, args.allow_pickle, args.skip_corrupt, args.amp)
    return config


def prepare_run(
    config: Config,
    launcher: str = 'none',
    allow_pickle: bool = False,
    skip_corrupt: bool = False,
    amp: bool = False,
) -> None:
    """Make a config, and this process, ready for mmengine's runner.

    Args:
        config: The config, changed in place.
        launcher: What has started the processes, as mmengine names it.
        allow_pickle: Run the code that pickled checkpoints and annotations hold. Only for files that you trust.
        skip_corrupt: Leave unreadable images out of the training data.
        amp: Train under bfloat16 autocast.

    A CPU computes in bfloat16 what the config wants in float16, and in float32 where it has no instructions for that.

    Raises:
        UserError: The processes were not started by the launcher, or a data set reads pickled code.
    """
    config.launcher = launcher
    guard_checkpoints(allow_pickle)
    BaseDataset._serialize_data = _serialized
    if not allow_pickle and 'OpenImagesChallengeDataset' in map(type_name, _config_dicts(config)):
        raise UserError(
            'OpenImagesChallengeDataset reads its label tree by pickle, which can run code: if you trust '
            'its hierarchy_file, allow it (--allow-pickle)'
        )
    for node in _config_dicts(config):
        for key in ('collate_fn', 'worker_init_fn'):  # mmengine would call these with a config's scope
            if isinstance(function := node.get(key), dict):
                function.pop('_scope_', None)
    _add_hooks(config)
    check_images(config, skip_corrupt)
    # A GPU's mixed precision in a stock config: on a CPU mmengine refuses it.
    if amp or (type_name(config.get('optim_wrapper') or {}) == 'AmpOptimWrapper' and not torch.cuda.is_available()):
        config.optim_wrapper = {
            key: value for key, value in config.optim_wrapper.items() if key not in ('loss_scale', 'dtype', 'use_fsdp')
        } | {'type': 'kd_plugins.BF16OptimWrapper'}
    _check_launcher(launcher)
    if not torch.cuda.is_available():
        _use_cpu(config)


def watch(config: Config, backends: Sequence[str]) -> None:
    """Add a :class:`~kd_plugins.hooks.WatchHook` to a config, and visual back-ends beside those that it has.

    Nothing leaves this machine unless the variables of W&B and MLflow in the environment name a server.

    Args:
        config: The config, changed in place.
        backends: Their names, of ``BACKENDS``.
    """
    hooks = config.get('default_hooks') or {}
    config.default_hooks = {**hooks, 'watch': dict(type='kd_plugins.WatchHook') | (hooks.get('watch') or {})}
    options: dict[str, dict[str, Any]] = dict(
        tensorboard={},
        wandb=dict(init_kwargs=dict(mode=os.environ.get('WANDB_MODE', 'offline'), name=config.work_dir)),
        mlflow=dict(
            tracking_uri=os.environ.get('MLFLOW_TRACKING_URI', 'sqlite:///mlflow.db'),  # what `mlflow ui` shows
            exp_name=os.environ.get('MLFLOW_EXPERIMENT_NAME'),
            run_name=config.work_dir,
        ),
    )
    visualizer = config.get('visualizer') or dict(type='Visualizer')
    found = visualizer.get('vis_backends') or [dict(type='LocalVisBackend')]
    found = [found] if isinstance(found, Mapping) else found
    kinds = {type_name(backend) for backend in found}
    new = [dict(type=BACKENDS[name]) | options[name] for name in backends if BACKENDS[name] not in kinds]
    config.visualizer = {**visualizer, 'vis_backends': [*found, *new]}


BACKENDS = dict(tensorboard='TensorboardVisBackend', wandb='WandbVisBackend', mlflow='MLflowVisBackend')
# The packages that mmengine's visual back-ends import, by the name that pip knows.
_PACKAGES = {kind: name for name, kind in BACKENDS.items()} | {
    f'{kind}VisBackend': kind.lower() for kind in ('ClearML', 'Neptune', 'DVCLive', 'Aim')
}


def check_backends(config: Config) -> None:
    """Check that the packages of a config's visual back-ends are installed.

    Raises:
        UserError: One is not.
    """
    backends = (config.get('visualizer') or {}).get('vis_backends') or []
    for backend in [backends] if isinstance(backends, Mapping) else backends:
        package = _PACKAGES.get(kind := type_name(backend) if isinstance(backend, Mapping) else '')
        needed = [package] if package else []
        if package == 'mlflow' and str(backend.get('tracking_uri')).startswith('sqlite:'):
            needed.append('sqlalchemy')  # which mlflow-skinny leaves out
        if any(find_spec(name) is None for name in needed):
            raise UserError(f'{kind} needs the package {package}: pip install {package}, or remove this back-end')


def scope_of(config: Config) -> str:
    """Return the package whose networks a config describes."""
    if config.get('default_scope'):
        return config.default_scope
    model = config.model
    while 'student' in model:
        model = model['student']
    kind = model.get('type', '')  # a class, in a config by read_base
    return model.get('_scope_') or (kind if isinstance(kind, str) else kind.__module__).partition('.')[0]


_serialize = BaseDataset._serialize_data


def _serialized(dataset: BaseDataset) -> tuple[np.ndarray, np.ndarray]:
    """Do what mmengine's data sets do once they are read, but raise where no image is left of one."""
    if not dataset.data_list:
        source = dataset.ann_file or dataset.data_root or dataset.data_prefix
        classes = f'{dataset.metainfo.get("classes")!r:.60}'
        raise UserError(
            f'{type(dataset).__name__}: no image is left of {source}: it has none, or none that '
            f'classes={classes}, filter_cfg={dataset.filter_cfg} and indices={dataset._indices} keep'
        )
    return _serialize(dataset)


# The variable in which a launcher gives each process its rank.
_RANKS = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')


def _check_launcher(launcher: str) -> None:
    if launcher != 'none' and _RANKS[launcher] not in os.environ:
        start = dict(pytorch='torchrun --nproc_per_node N', slurm='srun', mpi='mpirun -n N')[launcher]
        raise UserError(
            f'--launcher {launcher}: this process was not started by it; put {start} before the command'
            f'{", before an installed kd-train with --no-python" if launcher == "pytorch" else ""}, or leave the '
            'option out'
        )
    if launcher == 'pytorch':
        for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'):
            if name not in os.environ or (name != 'MASTER_ADDR' and not os.environ[name].isdecimal()):
                raise UserError(
                    f'--launcher pytorch: {name} is {os.environ.get(name)!r}, which torchrun would have '
                    'set; put torchrun --nproc_per_node N before the command'
                )
        if int(os.environ['RANK']) >= int(os.environ['WORLD_SIZE']):
            raise UserError(
                f'--launcher pytorch: RANK is {os.environ["RANK"]}, expected less than WORLD_SIZE, '
                f'{os.environ["WORLD_SIZE"]}'
            )
    if launcher == 'none' and 'TORCHELASTIC_RUN_ID' in os.environ:
        raise UserError('torchrun has started this process, which would work alone: give --launcher pytorch')
    if launcher in ('slurm', 'mpi') and not torch.cuda.is_available():
        raise UserError(
            f'--launcher {launcher} needs a GPU for each process, and torch finds none: use torchrun with '
            '--launcher pytorch'
        )


def join_group(launcher: str) -> None:
    """Join the group of processes that a launcher has started, for a command without a runner.

    Raises:
        UserError: The processes were not started by the launcher.
    """
    _check_launcher(launcher)
    if launcher == 'none':
        return
    if torch.cuda.is_available():
        init_dist(launcher)
    else:  # mmengine's own set-up asks CUDA for a device
        torch.distributed.init_process_group('gloo')


@contextmanager
def alone_in(
    folder: str | Path, launcher: str = 'none', file: str = '.lock', until: Callable[[], object] | None = None
) -> Iterator[None]:
    """Hold a folder, so that no other command writes into it at the same time.

    Args:
        folder: The folder, which is made where it is missing.
        launcher: Of several processes that a launcher starts, the first one holds the folder.
        file: Name of the file that is locked.
        until: Wait for another command that holds the folder, but no longer than until this returns what is true.

    Raises:
        UserError: Another command holds it, and ``until`` is None.
    """
    if int(os.environ.get(_RANKS.get(launcher, ''), 0)):  # the first process holds it for the others
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    with Path(folder, file).open('w') as lock:
        os.register_at_fork(after_in_child=lock.close)  # a loader's worker can outlive this process
        for tried in itertools.count():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if until is None:
                    raise UserError(
                        f'{folder}: another command runs in this folder: wait until it ends, or name another folder'
                    ) from None
                if until():
                    break
                if not tried:
                    print_log(f'waiting for another command, which runs in {folder}', 'current')
                time.sleep(1)
            except OSError:  # a file system without locks
                break
        yield


class Tester(Runner):
    """A runner that leaves the config in its folder as it is: that of the training."""

    def dump_config(self) -> None:
        """Write nothing."""


def leave_group() -> None:
    """Leave the group of processes, where there is one, at the end of a successful run.

    A thread of gloo may still hold tensors of the last collective. If it frees them while Python shuts down, the
    process is aborted, and the launcher kills the others, which may not have written their results yet. After an error
    no process leaves: it would wait for collectives that the others never join.
    """
    if torch.distributed.is_initialized():
        gc.collect()  # a data-parallel model that is no longer used holds the group too
        torch.distributed.destroy_process_group()


def latest_checkpoint(config: Config) -> str | None:
    """Return the last whole checkpoint that a config's run has left where its ``CheckpointHook`` writes, or None.

    The file ``last_checkpoint`` is not read: a killed run can leave it empty or outdated. Nor does the number alone
    decide: the checkpoints of a longer, older run may lie in the same folder. :class:`IntegrityHook` marks those of
    each run.

    Raises:
        UserError: There are such checkpoints, and all are damaged.
    """
    hooks = [(config.get('default_hooks') or {}).get('checkpoint'), *(config.get('custom_hooks') or [])]
    hook: dict[str, Any] = next((x for x in hooks if x and type_name(x).endswith('CheckpointHook')), {})
    work_dir, folder = os.path.abspath(config.work_dir), hook.get('out_dir')
    if folder is None or folder == work_dir:
        folder = work_dir
    elif '://' in folder:
        raise UserError(
            f"--resume: the CheckpointHook's out_dir, {folder}, is not a local folder: download the checkpoint, "
            'and give its path after --resume'
        )
    else:
        folder = os.path.join(folder, os.path.basename(work_dir))
    template = hook.get('filename_tmpl')
    names = [template] if template else ['epoch_{}.pth', 'iter_{}.pth']
    pattern = '|'.join(re.sub(r'\\{.*?\\}', r'(\\d+)', re.escape(name)) for name in names)
    found = sorted(
        (
            (path.stat().st_mtime_ns, int(next(filter(None, match.groups()), 0)), str(path))
            for path in Path(folder).glob('*')
            if (match := re.fullmatch(pattern, path.name))
        ),
        reverse=True,
    )
    numbers = [number for _, number, _ in found]
    if numbers != sorted(numbers, reverse=True):  # of several runs, or copies, whose files are as old as the copy
        found.sort(key=lambda x: (_saved_at(x[-1]), *x), reverse=True)
    file = Path(work_dir, RUN_ID)
    run = file.read_text() if file.is_file() else None
    damaged = None
    for *_, path in found:
        try:
            checkpoint = read_checkpoint(path)
        except UnreadableError as error:
            damaged = error
            print_log(f'{error}; --resume takes the one before it', 'current', logging.WARNING)
            continue
        if run is None or run == run_of(checkpoint):
            return path
    if damaged:
        raise UserError(f'{damaged}; no undamaged one precedes it: start a new run, without --resume')
    print_log(
        f'--resume: {folder} holds no checkpoint of this run{", only of an earlier one" if found else ""}: it '
        'starts from scratch',
        'current',
    )
    return None


def _saved_at(path: str) -> str:
    """Return when a checkpoint was written, as mmengine notes in it, in a form that sorts; '' of a damaged one."""
    try:
        meta = read_checkpoint(path).get('meta')
    except UnreadableError:
        return ''
    return str(meta.get('time', '')) if isinstance(meta, dict) else ''


# Hooks that mmengine adds itself. It accepts None for these alone.
_MMENGINE_HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')


def _add_hooks(config: Config) -> None:
    # Config stores a copy of a dict, so that setdefault would return one that is not part of it.
    hooks = dict(config.get('default_hooks') or {})
    names = ['Reseed', 'Accumulation', 'Integrity', 'Check', 'Corruption', 'Summary']
    for name in [*names, 'LabelMap'] if config.get('default_scope') == 'mmseg' else names:
        hooks.setdefault(name.lower(), dict(type=f'kd_plugins.{name}Hook'))
    if hooks.get('checkpoint', {}) is not None:  # without checkpoints there is none to export
        hooks.setdefault('export', dict(type='kd_plugins.ExportHook'))
    config.default_hooks = {name: hook for name, hook in hooks.items() if hook is not None or name in _MMENGINE_HOOKS}


def _config_dicts(node: Any) -> Iterator[dict[str, Any]]:
    return (value for _, value in walk(node) if isinstance(value, dict))


def check_images(config: Config, skip_corrupt: bool = False) -> None:
    """Let all images that a config names be loaded by ``LoadImage``, which notices broken ones, and label maps, too.

    Args:
        config: The config, changed in place, whose hooks are complete.
        skip_corrupt: Leave unreadable images out of the training data.
    """
    nodes = [*_config_dicts(config)]
    checked = [id(node.get('load')) for node in nodes if type_name(node) == 'LoadSegMap']  # of a run's own config
    for node in nodes if config.get('default_scope') == 'mmseg' else ():
        kind = node.get('type', '')  # a class, in a config by read_base
        package = (
            kind.rpartition('.')[0] if isinstance(kind, str) else getattr(kind, '__module__', '').partition('.')[0]
        )
        if type_name(node) == 'LoadAnnotations' and package in ('', 'mmseg') and id(node) not in checked:
            load = dict(node, type='mmseg.LoadAnnotations')
            node.clear()
            node.update(type='kd_plugins.LoadSegMap', load=load)
    _check_images(config.get('train_dataloader'), skip_corrupt)
    for name in ('val_dataloader', 'test_dataloader'):  # every image is scored, or none
        _check_images(config.get(name), None)
    hooks = [*(config.get('default_hooks') or {}).values(), *(config.get('custom_hooks') or [])]
    _check_images(hooks, None)
    for hook in _config_dicts(hooks):
        for name in ('switch_pipeline', 'train_pipeline'):  # which take the place of the training data's later on
            _check_images(hook.get(name), skip_corrupt)


def _check_images(node: Any, skip_corrupt: bool | None) -> None:
    """Load the images below a node of the config through ``LoadImage``, which notices broken ones.

    Args:
        node: Part of the config.
        skip_corrupt: Whether to leave broken images out; False where the config alone says so, None never.
    """
    for transform in _config_dicts(node):
        options = {key for key, value in transform.items() if value is not None}
        if type_name(transform) == 'LoadImageFromFile' and options <= {
            'type',
            'to_float32',
            'color_type',
            'imdecode_backend',
            'backend_args',
        }:
            transform['type'] = 'kd_plugins.LoadImage'
        if type_name(transform) in ('LoadImage', 'LoadSegMap'):
            asked = skip_corrupt or transform.get('skip_corrupt', False)
            transform['skip_corrupt'] = asked and skip_corrupt is not None


def _use_cpu(config: Config) -> None:
    """Let a run, also of several processes, work well without a GPU."""
    keep_freed_memory()
    if not has_bfloat16():
        _use_float32(config)
    if config.launcher == 'pytorch':
        join_group(config.launcher)
        default = dict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=config.get('find_unused_parameters', False),
        )
        config.model_wrapper_cfg = default | dict(config.get('model_wrapper_cfg') or {}) | dict(device_ids=None)


def has_bfloat16() -> bool:
    """Return whether oneDNN, which runs the convolutions of a CPU, has bfloat16 kernels for this one."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _use_float32(config: Config) -> None:
    """Take bfloat16 out of a config, for a CPU that emulates it at about a tenth of float32's speed."""
    wanted = type_name(config.get('optim_wrapper') or {}) == 'BF16OptimWrapper'
    if wanted:
        config.optim_wrapper.type = 'OptimWrapper'
    given = [node['teacher'] for node in _config_dicts(config) if isinstance(node.get('teacher'), (dict, list, tuple))]
    teachers = [
        x for teacher in given for x in ([teacher] if isinstance(teacher, dict) else teacher) if isinstance(x, dict)
    ]
    loops = [config[name] for name in ('val_cfg', 'test_cfg') if config.get(name)]
    for nodes, option in ((teachers, 'bf16'), (loops, 'fp16')):
        for node in nodes:
            if node.get(option) is True:
                node[option], wanted = False, True
    if wanted:
        print_log(
            'this CPU has no bfloat16 instructions, and would take about ten times as long to emulate them: the run '
            'computes in float32',
            'current',
            logging.WARNING,
        )
