"""Checkpoints: read without running pickled code, written whole or not at all."""

import copy
import hashlib
import io
import logging
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from mmengine.fileio import register_backend
from mmengine.logging import print_log
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint
from numpy._core import multiarray
from torch.hub import download_url_to_file, get_dir

from kd_plugins.compat import provide_interp2d
from kd_plugins.errors import UserError
from kd_plugins.registry import type_name
from kd_plugins.unpickling import guard_files
from kd_plugins.utils.files import AtomicBackend
from kd_plugins.utils.names import first, nearest

RUN_MARK = 'run_id'  # in the messages of a checkpoint, and as a file beside


class UnreadableError(UserError):
    """A checkpoint is damaged."""


def _known_method(owner: Any, name: str) -> Any:
    """Stand in for ``getattr``, by which mmengine pickles some methods; a crafted file could reach anything by it."""
    in_log = owner is HistoryBuffer and not name.startswith('_')
    if not in_log and (owner is not OneCycleParamScheduler or name not in ('_annealing_cos', '_annealing_linear')):
        raise pickle.UnpicklingError(f'GLOBAL builtins.getattr of {owner}')
    return getattr(owner, name)


# What mmengine itself puts into a checkpoint beside tensors.
_SAFE = [
    HistoryBuffer,
    OneCycleParamScheduler,
    (_known_method, 'builtins.getattr'),
    (_known_method, '__builtin__.getattr'),
    slice,
    np.ndarray,
    np.dtype,
    # Files of NumPy 1 know these two by another name.
    *(
        (getattr(multiarray, name), f'numpy.{core}.multiarray.{name}')
        for name in ('_reconstruct', 'scalar')
        for core in ('core', '_core')
    ),
    *{type(np.dtype(t)) for t in (np.bool_, np.int32, np.int64, np.uint8, np.uint32, np.float32, np.float64)},
]


_pickle_allowed = False  # what guard_checkpoints said


def read_checkpoint(path: str | Path, map_location: Any = 'cpu', allow_pickle: bool = False) -> dict[str, Any]:
    """Read a checkpoint, tensors and plain values only.

    Args:
        path: File, ``http(s)://`` address (downloaded once into torch's hub folder), or a name that mmengine knows:
            ``torchvision://``, ``open-mmlab://``, ``mmcls://``. Other storages are refused.
        map_location: As in :func:`torch.load`.
        allow_pickle: Run the code that a pickled file holds, as :func:`guard_checkpoints` may have allowed for all.
            Only for files that you trust.

    Raises:
        UserError: The file is missing, truncated, no checkpoint, or holds pickled code.
    """
    path, backbone = _file_of(os.path.expanduser(str(path)))
    allow_pickle = allow_pickle or _pickle_allowed
    if not os.path.isfile(path):
        raise UserError(f'checkpoint {path} does not exist: give the path of a .pth file, or train it first')
    _check_sums(path)
    try:
        with torch.serialization.safe_globals(_SAFE):
            checkpoint = torch.load(path, map_location=map_location, weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        name = re.search(r'GLOBAL ([\w.]+)', str(error))
        if name is None:
            raise UnreadableError(
                f'{path} is no readable checkpoint (damaged or of another format): make it again'
            ) from error
        raise UserError(
            f"{path} holds pickled code ('{name[1]}'), which is refused: re-save its state_dict alone, or, if you "
            'trust the file, allow it (--allow-pickle, or allow_pickle=True in the teacher record)'
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, ImportError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnreadableError(
            f'{path} is no readable checkpoint (truncated or damaged): make it again ({reason})'
        ) from error
    weights = checkpoint.get('state_dict', {}) if isinstance(checkpoint, dict) else checkpoint
    if not isinstance(weights, dict):
        raise UserError(
            f'{path} holds a {type(weights).__name__} in place of weights: expected a dictionary of '
            'tensors, by themselves or under state_dict'
        )
    if backbone:  # as mmengine reads the names of mmcls
        weights = checkpoint.get('state_dict', checkpoint)
        return {'state_dict': {key[9:]: value for key, value in weights.items() if key.startswith('backbone.')}}
    return checkpoint


def _check_sums(path: str) -> None:
    """Compare a file with the checksums (CRC-32) that torch writes into it and does not read."""
    with open(path, 'rb') as file:
        if file.read(4) != b'PK\x03\x04':
            return  # of torch's older format, or none
    try:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                if record.CRC:  # 0 where torch was told to write none
                    with archive.open(record) as file:
                        while file.read(1 << 20):
                            pass
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise UnreadableError(
            f'{path} is no readable checkpoint (truncated or damaged): make it again ({error})'
        ) from error


def _file_of(path: str) -> tuple[str, bool]:
    """Return the file behind an address or a name of mmengine's, and whether the backbone alone is meant."""
    prefix, separator, name = path.partition('://')
    if not separator:
        return path, False
    if prefix in ('http', 'https'):
        return _download(path), False
    if prefix in ('torchvision', 'modelzoo'):
        known = mmengine_checkpoint.get_torchvision_models()
    elif prefix in ('open-mmlab', 'openmmlab'):
        known = mmengine_checkpoint.get_external_models()
        name = mmengine_checkpoint.get_deprecated_model_names().get(name, name)
    elif prefix == 'mmcls':
        known = mmengine_checkpoint.get_mmcls_models()
    else:
        raise UserError(
            f'{path}: checkpoints are read from files, http(s):// addresses, torchvision://, open-mmlab:// '
            'and mmcls:// names: fetch the file and give its path'
        )
    if name not in known:
        raise UserError(
            f"{path}: mmengine knows no '{name}' under {prefix}://; {nearest(name, known)}; correct it, or "
            'give the path of a file'
        )
    address = known[name]
    if '://' in address:
        return _download(address), prefix == 'mmcls'
    return os.path.join(mmengine_checkpoint._get_mmengine_home(), address), False


def _download(url: str) -> str:
    name = os.path.basename(url.partition('?')[0])
    folder = os.path.join(get_dir(), 'checkpoints')
    if re.search(r'-[0-9a-f]{8,}\.\w+$', name) and os.path.isfile(os.path.join(folder, name)):
        return os.path.join(folder, name)  # torch or mmengine has fetched it, and its name tells its content
    # Many an address ends in the same name.
    target = os.path.join(folder, f'{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}')
    if not os.path.isfile(target) and is_main_process():
        os.makedirs(os.path.dirname(target), exist_ok=True)
        try:
            download_url_to_file(url, target)
        except OSError as error:
            raise UserError(f'{url} cannot be downloaded ({error}): fetch it by hand and give its path') from error
    barrier()
    return target


def read_weights(path: str | Path, prefix: str = '', allow_pickle: bool = False) -> OrderedDict[str, torch.Tensor]:
    """Return the weights inside a checkpoint: under ``state_dict``, or the whole dictionary.

    Args:
        path: As for :func:`read_checkpoint`.
        prefix: Return what lies under this name alone, ``backbone``, without it.
        allow_pickle: As for :func:`read_checkpoint`.

    Raises:
        UserError: There are none; or as :func:`read_checkpoint`.
    """
    return weights_of(read_checkpoint(path, 'cpu', allow_pickle), path, prefix)


def weights_of(checkpoint: dict[str, Any], path: str | Path, prefix: str = '') -> OrderedDict[str, torch.Tensor]:
    """Return the weights of a checkpoint that was read from ``path``, see :func:`read_weights`."""
    weights = checkpoint.get('state_dict', checkpoint)
    if not any(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(f'{path} holds no weights: expected a dictionary of tensors, by themselves or under state_dict')
    found = OrderedDict((name.removeprefix('module.'), value) for name, value in weights.items())
    # The versions by which modules know older files.
    versions = {name.removeprefix('module.'): value for name, value in getattr(weights, '_metadata', {}).items()}
    if prefix:
        prefix = prefix.rstrip('.') + '.'
        found = OrderedDict((name.removeprefix(prefix), x) for name, x in found.items() if name.startswith(prefix))
        versions = {
            f'{name}.'.removeprefix(prefix).rstrip('.'): value
            for name, value in versions.items()
            if f'{name}.'.startswith(prefix)
        }
    found._metadata = versions
    return found


class Misfit(NamedTuple):
    """Where a checkpoint and a model do not meet: names of tensors, and torch's sentences on shapes."""

    missing: list[str]
    left_over: list[str]
    mismatched: list[str]
    loaded: int  # tensors of the model that the checkpoint has filled

    def __bool__(self) -> bool:
        return bool(self.missing or self.left_over or self.mismatched)

    def __str__(self) -> str:
        return first(
            [
                *self.mismatched,
                *(f'{name} is missing' for name in self.missing),
                *(f'{name} is left over' for name in self.left_over),
            ],
            '; ',
        )


def load_loosely(model: torch.nn.Module, weights: OrderedDict[str, torch.Tensor]) -> Misfit:
    """Load what fits, through the model's own loading hooks, and return what does not.

    These hooks know older files: they rename tensors and resize position tables. Missing integers (counters of a
    BatchNorm, position indices) count for nothing, and what cannot tell another network is only logged: a
    preprocessor's statistics, buffers that a module makes itself, and the averages (``ema_*``) that older files keep
    beside the weights.

    Raises:
        UserError: A hook of the model cannot read the checkpoint.
    """
    missing, left_over, mismatched = [], [], []

    def note(module: torch.nn.Module, keys: Any) -> None:
        missing[:], left_over[:] = keys

    provide_interp2d()
    handle = model.register_load_state_dict_post_hook(note)
    try:
        note(model, model.load_state_dict(weights, strict=False))
    except (AssertionError, IndexError, KeyError, RuntimeError) as error:
        mismatched = [line.strip().rstrip('.') for line in str(error).splitlines() if 'size mismatch for' in line]
        if not mismatched:  # which torch raises when all else is loaded
            raise UserError(
                f'the checkpoint does not fit {type(model).__name__} ({type(error).__name__}: {error}); '
                'give the checkpoint of this very config'
            ) from error
    finally:
        handle.remove()
    own, buffers = model.state_dict(), dict(model.named_buffers())
    integers = {name for name, value in [*own.items(), *buffers.items()] if not value.is_floating_point()}
    missing = [name for name in missing if name not in integers]
    averages = {f'ema_{name.replace(".", "_")}' for name in own}
    harmless = [
        name for name in left_over if name in averages or name in buffers or name.startswith('data_preprocessor.')
    ]
    if harmless:
        print_log(f'left out of the checkpoint, since no layer needs it: {first(harmless)}', 'current')
    return Misfit(
        missing,
        [name for name in left_over if name not in harmless],
        mismatched,
        sum(value.is_floating_point() for value in own.values()) - len(missing) - len(mismatched),
    )


def load_weights(model: torch.nn.Module, path: str | Path, allow_pickle: bool = False) -> dict[str, Any]:
    """Load a checkpoint into a model, all of it into all of the model, see :func:`load_loosely`; return it.

    Raises:
        UserError: A tensor is missing, left over, or of another shape; or as :func:`read_weights`.
    """
    checkpoint = read_checkpoint(path, 'cpu', allow_pickle)
    if misfit := load_loosely(model, weights_of(checkpoint, path)):
        raise UserError(
            f'{path} does not fit {type(model).__name__}: {misfit}; give the checkpoint of this very config'
        )
    return checkpoint


def check_pretrained(model: torch.nn.Module) -> Iterator[tuple[str, dict[str, torch.Tensor], str]]:
    """Check that what each ``init_cfg=dict(type='Pretrained', ...)`` promises has arrived, tensor for tensor.

    mmengine loads such a checkpoint loosely: with a wrong prefix nothing is loaded, and training runs on from random
    weights.

    Yields:
        Name of a module, its tensors that are a checkpoint's, and that checkpoint.

    Raises:
        UserError: A tensor is missing in a checkpoint, left over under its prefix, of another shape, or not equal to
            the module's.
    """
    for name, module, path, prefix in _pretrained(model):
        own = {key: value.clone() for key, value in module.state_dict().items()}
        code = getattr(getattr(type(module), 'init_weights', None), '__code__', None)
        if code is not None and 'CheckpointLoader' in code.co_names:
            found, problem = _converted(module)
        else:
            misfit = load_loosely(module, read_weights(path, prefix))
            if name and not prefix:  # a whole network's file for its backbone
                misfit.left_over.clear()
            found, problem = module.state_dict(), str(misfit)
        problem = problem or first([f'{key} differs' for key, x in found.items() if not torch.equal(x, own[key])])
        if problem:
            raise UserError(
                f"{name or 'the model'} was not handed over: under '{prefix}' in {path}, {problem}; both "
                f'configs must describe the same {name or "model"}'
            )
        yield name, found, path


def check_arrival(model: torch.nn.Module) -> None:
    """Check that of each ``init_cfg=dict(type='Pretrained', ...)`` at least one tensor has arrived, by whatever name.

    Raises:
        UserError: None has.
    """
    for name, module, path, prefix in _pretrained(model):
        checkpoint = read_checkpoint(path)
        groups = [checkpoint, *(group for group in checkpoint.values() if isinstance(group, dict))]
        given = [x for group in groups for x in group.values() if isinstance(x, torch.Tensor) and x.is_floating_point()]
        # Constants, as of a new BatchNorm, may be equal by chance.
        own = [x.detach().cpu() for x in module.parameters() if x.numel() > 1 and x.min() < x.max()]
        if own and not any(x.shape == y.shape and torch.equal(x, y.to(x.dtype)) for x in own for y in given):
            raise UserError(
                f'{name or "the model"} was not handed over: no tensor of it is one of {path}'
                f'{f", prefix {prefix}" if prefix else ""}; give the checkpoint of such a network, and the '
                'prefix of its names, or leave init_cfg out'
            )


def _pretrained(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, str, str]]:
    """Yield each module with a pretrained ``init_cfg``, but not its parts: mmengine loads the outermost file last."""
    loaded: list[str] = []
    for name, module in model.named_modules():
        if any(not outer or name.startswith(f'{outer}.') for outer in loaded):
            continue
        records = getattr(module, 'init_cfg', None) or []
        for record in [records] if isinstance(records, dict) else records:
            if type_name(record) in ('Pretrained', 'PretrainedInit'):
                loaded.append(name)
                yield name, module, record['checkpoint'], record.get('prefix') or ''


def _converted(module: torch.nn.Module) -> tuple[dict[str, torch.Tensor], str]:
    """Return what a module makes of a file that its own code reads and converts, as mmdet's Swin does, and a problem.

    Such files lack norms that the detector adds, so that one tensor has to arrive, not all.
    """
    fresh = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.fill_(torch.nan)
    fresh.init_weights()
    found = {key: value for key, value in fresh.named_parameters() if not value.isnan().any()}
    return found, '' if found else 'no tensor fits'


def guard_checkpoints(allow_pickle: bool = False) -> None:
    """Make mmengine read files without running code in them, and write them whole, in this process.

    All its ways to a checkpoint lead through :func:`read_checkpoint` then: ``load_from``, ``resume``, ``init_cfg``,
    under any prefix that is registered so far.

    Args:
        allow_pickle: Run the code that pickled files hold: checkpoints, also a teacher's, and ``.pkl`` annotations.
    """
    global _pickle_allowed
    _pickle_allowed = allow_pickle
    provide_interp2d()
    guard_files(allow_pickle)

    def load_from_guarded(path: str, map_location: Any = None) -> dict[str, Any]:
        return read_checkpoint(path, map_location)

    CheckpointLoader.register_scheme(tuple(CheckpointLoader._schemes), load_from_guarded, force=True)
    register_backend('local', AtomicBackend, prefixes='', force=True)


def latest_checkpoint(config: Config) -> str | None:
    """Return the last whole checkpoint that a config's run has left where its ``CheckpointHook`` writes, or None.

    The file ``last_checkpoint`` is not consulted: a kill can leave it empty or behind. Nor does the number alone count:
    a run that started anew may stand beside a longer, older one, whose checkpoints :class:`IntegrityHook` tells apart.

    Raises:
        UserError: There are such checkpoints, and all are damaged.
    """
    hooks = [(config.get('default_hooks') or {}).get('checkpoint'), *(config.get('custom_hooks') or [])]
    hook = next((hook for hook in hooks if hook and type_name(hook).endswith('CheckpointHook')), {})
    work_dir, folder = os.path.abspath(config.work_dir), hook.get('out_dir')
    if folder is None or folder == work_dir:
        folder = work_dir
    elif '://' in folder:
        raise UserError(
            f"--resume: the CheckpointHook's out_dir, {folder}, is no folder here: fetch the checkpoint, "
            'and give its path after --resume'
        )
    else:
        folder = os.path.join(folder, os.path.basename(work_dir))
    template = hook.get('filename_tmpl')
    names = [template] if template else ['epoch_{}.pth', 'iter_{}.pth']
    pattern = '|'.join(re.sub(r'\\{.*?\\}', r'(\\d+)', re.escape(name)) for name in names)
    found = sorted(
        (
            (path.stat().st_mtime_ns, int(match[match.lastindex]), str(path))
            for path in Path(folder).glob('*')
            if (match := re.fullmatch(pattern, path.name))
        ),
        reverse=True,
    )
    mark = Path(work_dir, RUN_MARK)
    run = mark.read_text() if mark.is_file() else None
    damaged = None
    for *_, path in found:
        try:
            checkpoint = read_checkpoint(path)
        except UnreadableError as error:
            damaged = error
            print_log(f'{error}; --resume looks for the one before it', 'current', logging.WARNING)
            continue
        if run is None or run == run_of(checkpoint):
            return path
    if damaged:
        raise UserError(f'{damaged}; there is no whole one before it to go on from: start anew, without --resume')
    print_log(
        f'--resume: {folder} holds no checkpoint of this run{", only of an earlier one" if found else ""}: it '
        'starts anew',
        'current',
    )
    return None


def run_of(checkpoint: dict[str, Any]) -> str:
    """Return the mark of the run that has written a checkpoint; '' where it has none."""
    try:
        return checkpoint['message_hub']['runtime_info'].get(RUN_MARK, '')
    except (AttributeError, KeyError, TypeError):  # not of mmengine's runner
        return ''


def save_weights(weights: dict[str, torch.Tensor], path: str | Path, meta: dict[str, Any]) -> None:
    """Write weights alone, whole or not at all, readable without pickled code."""
    with io.BytesIO() as buffer:
        plain = OrderedDict((name, tensor.detach().cpu()) for name, tensor in weights.items())
        # By their versions modules know older files.
        plain._metadata = {
            name: {'version': about['version']}
            for name, about in getattr(weights, '_metadata', {}).items()
            if 'version' in about
        }
        torch.save({'state_dict': plain, 'meta': meta}, buffer)
        AtomicBackend().put(buffer.getvalue(), str(path))
