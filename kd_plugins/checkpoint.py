"""Checkpoints: read without running pickled code, written whole or not at all."""

import hashlib
import io
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import barrier, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader
from numpy._core import multiarray
from torch.hub import download_url_to_file, get_dir

from kd_plugins.errors import UserError


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
    *((getattr(multiarray, name), f'numpy.{core}.multiarray.{name}')
      for name in ('_reconstruct', 'scalar') for core in ('core', '_core')),
    *{type(np.dtype(t)) for t in (np.bool_, np.int32, np.int64, np.uint8, np.uint32, np.float32, np.float64)},
]


def read_checkpoint(path: str | Path, map_location: Any = 'cpu', allow_pickle: bool = False) -> dict[str, Any]:
    """Read a checkpoint from a file or an ``http(s)://`` address, tensors and plain values only.

    Args:
        path: File, or address (downloaded once into torch's hub folder).
        map_location: As in :func:`torch.load`.
        allow_pickle: Run the code that a pickled file holds. Only for files that you trust.

    Raises:
        UserError: The file is missing, truncated, no checkpoint, or holds pickled code.
    """
    path = os.path.expanduser(str(path))
    if path.startswith(('http://', 'https://')):
        path = _download(path)
    if not os.path.isfile(path):
        raise UserError(f'checkpoint {path} does not exist: give the path of a .pth file, or train it first')
    try:
        with torch.serialization.safe_globals(_SAFE):
            checkpoint = torch.load(path, map_location=map_location, weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        name = re.search(r'GLOBAL ([\w.]+)', str(error))
        if name is None:
            raise UserError(f'{path} is no readable checkpoint (damaged or of another format): '
                            'make it again') from error
        raise UserError(
            f"{path} holds pickled code ('{name[1]}'), which is refused: re-save its state_dict alone, or, if you "
            'trust the file, allow it (--allow-pickle, or allow_pickle=True in the teacher record)'
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, ImportError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f'{path} is no readable checkpoint (truncated or damaged): make it again ({reason})') from error
    if not isinstance(checkpoint, dict):
        raise UserError(f'{path} holds a {type(checkpoint).__name__}, expected a dictionary with a state_dict')
    return checkpoint


def _download(url: str) -> str:
    # Many an address ends in the same name.
    name = f'{hashlib.sha256(url.encode()).hexdigest()[:8]}-{os.path.basename(url.partition("?")[0])}'
    target = os.path.join(get_dir(), 'checkpoints', name)
    if not os.path.isfile(target) and is_main_process():
        os.makedirs(os.path.dirname(target), exist_ok=True)
        try:
            download_url_to_file(url, target)
        except OSError as error:
            raise UserError(f'{url} cannot be downloaded ({error}): fetch it by hand and give its path') from error
    barrier()
    return target


def state_dict_of(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the weights inside a checkpoint: under ``state_dict``, or the whole dictionary."""
    return checkpoint.get('state_dict', checkpoint)


def load_weights(model: torch.nn.Module, path: str | Path, allow_pickle: bool = False) -> None:
    """Load a checkpoint into a model, key for key.

    Raises:
        UserError: A key is missing, left over, or of another shape; or as :func:`read_checkpoint`.
    """
    weights = state_dict_of(read_checkpoint(path, 'cpu', allow_pickle))
    weights = {name.removeprefix('module.'): tensor for name, tensor in weights.items()}
    own = model.state_dict()
    problems = [f'{k} is {tuple(v.shape)}, the model has {tuple(own[k].shape)}'
                for k, v in weights.items() if k in own and own[k].shape != v.shape]
    # Files from before torch 0.4.1 have no counters, which only a BatchNorm without momentum reads.
    problems += [f'{k} is missing' for k in own if k not in weights and not k.endswith('num_batches_tracked')]
    problems += [f'{k} is left over' for k in weights if k not in own]
    if problems:
        more = f' (and {len(problems) - 3} more)' if len(problems) > 3 else ''
        raise UserError(f'{path} does not fit {type(model).__name__}: {"; ".join(problems[:3])}{more}; '
                        'give the checkpoint of this very config')
    model.load_state_dict(own | weights)


class AtomicBackend(LocalBackend):
    """mmengine's local storage, but a write that fails leaves the old file as it was."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes beside the file, then put them in its place."""
        partial = f'{filepath}.partial'
        try:
            super().put(obj, partial)
            os.replace(partial, filepath)
        except OSError as error:
            Path(partial).unlink(missing_ok=True)
            raise UserError(f'{filepath} cannot be written ({error.strerror}): the last good checkpoint is kept; '
                            'make room and go on with --resume') from error


def guard_checkpoints(allow_pickle: bool = False) -> None:
    """Make mmengine read checkpoints through :func:`read_checkpoint` and write files whole, in this process."""

    def load_safely(path: str, map_location: Any = None) -> dict[str, Any]:
        return read_checkpoint(path, map_location, allow_pickle)

    CheckpointLoader.register_scheme(('', 'http://', 'https://'), load_safely, force=True)
    register_backend('local', AtomicBackend, prefixes='', force=True)


def latest_checkpoint(work_dir: str | Path) -> str | None:
    """Return the file last written of mmengine's ``epoch_N.pth`` or ``iter_N.pth`` in a folder, or None.

    The file ``last_checkpoint`` is not consulted: a kill can leave it empty or behind. Nor does the number alone count:
    a run that started anew may stand beside a longer, older one.
    """
    found = [(p.stat().st_mtime_ns, int(m[1]), str(p)) for p in Path(work_dir).glob('*.pth')
             if (m := re.fullmatch(r'(?:epoch|iter)_(\d+)', p.stem))]
    return max(found)[2] if found else None


def save_weights(weights: dict[str, torch.Tensor], path: str | Path, meta: dict[str, Any]) -> None:
    """Write weights alone, whole or not at all, readable without pickled code."""
    with io.BytesIO() as buffer:
        plain = {name: tensor.detach().cpu() for name, tensor in weights.items()}
        torch.save({'state_dict': plain, 'meta': meta}, buffer)
        AtomicBackend().put(buffer.getvalue(), str(path))
