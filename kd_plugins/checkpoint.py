"""Checkpoints: read without running pickled code, written whole or not at all."""

import hashlib
import io
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import barrier, is_main_process
from mmengine.fileio import register_backend
from mmengine.logging import print_log
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch.hub import download_url_to_file, get_dir

from kd_plugins.compat import provide_interp2d
from kd_plugins.errors import UserError
from kd_plugins.unpickling import guard_files, pickle_allowed
from kd_plugins.utils.files import AtomicBackend
from kd_plugins.utils.names import first, nearest

RUN_ID = 'run_id'  # name in the message hub of a checkpoint, and of a file in the run's folder


class UnreadableError(UserError):
    """A checkpoint is damaged."""


def _known_method(owner: Any, name: str) -> Any:
    """Replace ``getattr``, by which mmengine pickles some methods: a crafted file could reach anything through it."""
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
    # What NumPy pickles arrays and scalars by; files of NumPy 1 have it under another name.
    *(
        (value.__reduce__()[0], f'numpy.{core}.multiarray.{name}')
        for value, name in ((np.empty(0), '_reconstruct'), (np.float64(0), 'scalar'))
        for core in ('core', '_core')
    ),
    *{type(np.dtype(t)) for t in (np.bool_, np.int32, np.int64, np.uint8, np.uint32, np.float32, np.float64)},
]


def may_run_pickles(allow_pickle: bool = False) -> bool:
    """Return whether the code in pickled files may run: by an option of this file, or by the command's."""
    return allow_pickle or pickle_allowed()


def read_checkpoint(path: str | Path, map_location: Any = 'cpu', allow_pickle: bool = False) -> dict[str, Any]:
    """Read a checkpoint, tensors and plain values only.

    Args:
        path: File (of torch, or ``.safetensors``), ``http(s)://`` address (downloaded once into torch's hub folder), or
            a name that mmengine knows: ``torchvision://``, ``open-mmlab://``, ``mmcls://``. Other storages are refused.
        map_location: As in :func:`torch.load`.
        allow_pickle: Run the code that a pickled file holds, as :func:`guard_checkpoints` may have allowed for all.
            Only for files that you trust.

    Raises:
        UserError: The file is missing, truncated, no checkpoint, or holds pickled code.
    """
    path, backbone = _file_of(os.path.expanduser(str(path)))
    allow_pickle = may_run_pickles(allow_pickle)
    if os.path.isdir(path):
        raise UserError(f'checkpoint {path} is a folder: give the path of a .pth or .safetensors file in it')
    if not os.path.isfile(path):
        raise UserError(
            f'checkpoint {path} does not exist: give the path of a .pth or .safetensors file, or train it first'
        )
    if path.endswith('.safetensors'):
        return {'state_dict': _read_safetensors(path, map_location)}
    _check_sums(path)
    try:
        with torch.serialization.safe_globals(_SAFE):
            checkpoint = torch.load(path, map_location=map_location, weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        name = re.search(r'GLOBAL ([\w.]+)', str(error))
        if name is None:
            raise UnreadableError(
                f'{path} is not a readable checkpoint (damaged or of another format): {_again(path)}'
            ) from error
        raise UserError(
            f"{path} holds pickled code ('{name[1]}'), which is refused: re-save its state_dict alone, or, if you "
            'trust the file, allow it (--allow-pickle, or allow_pickle=True beside the checkpoint of a teacher)'
        ) from error
    except Exception as error:  # which kind depends on the bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if 'TorchScript' in str(error):
            raise UserError(
                f'{path} is a TorchScript program, not weights: save the state_dict of torch.jit.load({path!r}), and '
                'give that'
            ) from error
        raise UnreadableError(
            f'{path} is not a readable checkpoint (truncated or damaged): {_again(path)} ({reason})'
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


def _read_safetensors(path: str, map_location: Any) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"{path} needs safetensors, which is not installed: pip install -e '.[huggingface]'") from error
    try:
        return load_file(path, str(map_location or 'cpu'))
    except (SafetensorError, OSError, ValueError) as error:
        raise UnreadableError(
            f'{path} is not a readable checkpoint (truncated, damaged or of another format): {_again(path)} ({error})'
        ) from error


def _check_sums(path: str) -> None:
    """Compare a file with the checksums (CRC-32) that torch writes into it and does not read."""
    with open(path, 'rb') as file:
        if file.read(4) != b'PK\x03\x04':
            return  # of torch's older format, or none
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.CRC:  # 0 where torch was set to write none
                    with archive.open(entry) as file:
                        while file.read(1 << 20):
                            pass
    except Exception as error:  # which kind depends on the bytes
        raise UnreadableError(
            f'{path} is not a readable checkpoint (truncated or damaged): {_again(path)} ({error})'
        ) from error


def _again(path: str) -> str:
    """Return how to get a whole file in the place of a damaged one."""
    downloaded = Path(get_dir(), 'checkpoints') in Path(path).parents  # maybe cut off on the way
    return 'remove it, and it is downloaded again' if downloaded else 'make it again'


def _file_of(path: str) -> tuple[str, bool]:
    """Return the file behind an address or a name of mmengine's, and whether the backbone alone is meant."""
    prefix, separator, name = path.partition('://')
    if not separator:
        return path, False
    if prefix in ('http', 'https'):
        return download(path), False
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
        return download(address), prefix == 'mmcls'
    return os.path.join(mmengine_checkpoint._get_mmengine_home(), address), False


def download(url: str, check_hash: bool = False) -> str:
    """Return the file of an address, downloaded once into torch's hub folder.

    Args:
        url: The address.
        check_hash: Whether the digest in the name is that of the content, as in torchvision's; others' may not be.

    Raises:
        UserError: It cannot be downloaded, or is damaged.
    """
    name = os.path.basename(url.partition('?')[0])
    digest = re.search(r'-([0-9a-f]{8,})\.\w+$', name)
    if not digest:  # else with a digest of its content, as torch and mmengine keep it
        name = f'{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}'  # several addresses may end in the same name
    target = os.path.join(get_dir(), 'checkpoints', name)
    if not os.path.isfile(target) and is_main_process():
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            download_url_to_file(url, target, digest[1] if digest and check_hash else None)
        except (OSError, RuntimeError) as error:  # the latter of another digest
            raise UserError(f'{url} cannot be downloaded ({error}): download it by hand and give its path') from error
    barrier()
    return target


def read_weights(path: str | Path, prefix: str = '', allow_pickle: bool = False) -> OrderedDict[str, torch.Tensor]:
    """Return the weights inside a checkpoint: under ``state_dict`` or ``model``, or the whole dictionary.

    Args:
        path: As for :func:`read_checkpoint`.
        prefix: Return only the weights under this name, as ``backbone``, with the name cut off.
        allow_pickle: As for :func:`read_checkpoint`.

    Raises:
        UserError: The file holds no weights; or as :func:`read_checkpoint`.
    """
    return weights_of(read_checkpoint(path, 'cpu', allow_pickle), path, prefix)


def weights_of(checkpoint: Mapping[str, Any], path: str | Path, prefix: str = '') -> OrderedDict[str, torch.Tensor]:
    """Return the weights of a checkpoint that was read from ``path``, see :func:`read_weights`.

    Raises:
        UserError: The checkpoint holds no weights.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    if isinstance(weights.get('model'), Mapping):  # as timm's and torchvision's own training keeps it
        weights = weights['model']
    if not any(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()):
        raise UserError(f'{path} holds no weights: expected a dictionary of tensors, by themselves or under state_dict')
    found: Any = OrderedDict(
        (name.removeprefix('module.'), value) for name, value in weights.items() if isinstance(name, str)
    )
    # The versions by which modules recognise older files.
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
    """How a checkpoint differs from a model: names of tensors, and torch's messages on shapes."""

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

    These hooks read older files: they rename tensors and resize position tables, or drop tables that the network makes
    itself (SwinV2), which then are not missing. Missing integers (counters of a BatchNorm, position indices) are
    ignored. Some left-over tensors are only logged, since a file of this very network can have them: a preprocessor's
    statistics, buffers that a module makes itself, the averages (``ema_*``) that older files keep beside the weights,
    and weights that another name has loaded (a training step of mmdet's DDQ gives its decoder layers of the head).

    Raises:
        UserError: A hook of the model cannot read the checkpoint.
    """
    missing: list[str] = []
    left_over: list[str] = []
    mismatched: list[str] = []

    def note(module: torch.nn.Module, keys: Any) -> None:
        missing[:], left_over[:] = keys

    provide_interp2d()
    handle = model.register_load_state_dict_post_hook(note)
    try:
        note(model, model.load_state_dict(weights, strict=False))
    except (AssertionError, IndexError, KeyError, RuntimeError) as error:
        mismatched = [line.strip().rstrip('.') for line in str(error).splitlines() if 'size mismatch for' in line]
        if not mismatched:  # shape mismatches are raised when all else is loaded
            raise UserError(
                f'the checkpoint does not fit {type(model).__name__} ({type(error).__name__}: {error}); '
                'give the checkpoint of this very network'
            ) from error
    finally:
        handle.remove()
    own, buffers = model.state_dict(), dict(model.named_buffers())
    integers = {name for name, value in [*own.items(), *buffers.items()] if not value.is_floating_point()}
    missing = [name for name in missing if name not in integers and not (name in buffers and name in weights)]
    averages = {f'ema_{name.replace(".", "_")}' for name in own}

    def again(name: str) -> bool:
        end, value = name.partition('.')[2], weights.get(name)  # None: a hook of the model has renamed it
        same = [weights[x] for x in own.keys() & weights if '.' in end and x.partition('.')[2] == end]
        # A file that is its weights by itself may hold other things beside them, as a number of epochs.
        return isinstance(value, torch.Tensor) and any(x.dtype == value.dtype and torch.equal(x, value) for x in same)

    harmless = [
        name
        for name in left_over
        if name in averages or name in buffers or name.startswith('data_preprocessor.') or again(name)
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
    load_exactly(model, weights_of(checkpoint, path), path)
    return checkpoint


def load_exactly(model: torch.nn.Module, weights: OrderedDict[str, torch.Tensor], path: str | Path) -> None:
    """Load weights that were read from ``path``, all of them into all of the model; into a backbone, its part of them.

    Raises:
        UserError: A tensor is missing, left over, or of another shape.
    """
    if misfit := load_loosely(model, _for_backbone(model, weights)):
        raise UserError(
            f'{path} does not fit {type(model).__name__}: {misfit}; give the checkpoint of this very network'
        )


def _for_backbone(model: torch.nn.Module, weights: OrderedDict[str, torch.Tensor]) -> OrderedDict[str, torch.Tensor]:
    """Return the ``backbone.`` of a whole network's weights for a model that is no more than that, else all."""
    own, prefix = model.state_dict().keys(), 'backbone.'
    if not any(name.startswith(prefix) for name in weights) or not own:
        return weights
    if own.isdisjoint(weights) and not any(name.startswith(prefix) for name in own):
        cut = len(prefix)
    elif all(name.startswith(prefix) for name in own):
        cut = 0
    else:
        return weights
    harmless = () if cut else ('data_preprocessor.', 'ema_')  # which load_loosely reports
    part = OrderedDict((name[cut:], x) for name, x in weights.items() if name.startswith((prefix, *harmless)))
    versions = getattr(weights, '_metadata', {})
    part._metadata = {  # type: ignore[attr-defined]  # as torch's own state dicts have it
        name if not cut else f'{name}.'.removeprefix(prefix).rstrip('.'): value
        for name, value in versions.items()
        if f'{name}.'.startswith(prefix)
    }
    return part


def renamed(
    weights: OrderedDict[str, torch.Tensor], revise_keys: Sequence[tuple[str, str]]
) -> OrderedDict[str, torch.Tensor]:
    """Return weights under other names.

    Args:
        weights: Tensors by name.
        revise_keys: Pairs (pattern, replacement) of regular expressions, applied to the names one after the other.

    Raises:
        UserError: They are no such pairs.
    """
    try:
        for pattern, replacement in revise_keys:
            versions = getattr(weights, '_metadata', {}).items()
            changed: Any = OrderedDict((re.sub(pattern, replacement, name), x) for name, x in weights.items())
            changed._metadata = {re.sub(pattern, replacement, f'{name}.').rstrip('.'): x for name, x in versions}
            weights = changed
    except (TypeError, ValueError, re.error) as error:
        raise UserError(
            f"revise_keys must be pairs of texts, as [(r'^backbone\\.', '')], got {revise_keys!r} ({error})"
        ) from error
    return weights


def guard_checkpoints(allow_pickle: bool = False) -> None:
    """Make mmengine read files without running code in them, and write them whole, in this process.

    It then reads every checkpoint by :func:`read_checkpoint`: of ``load_from``, ``resume`` and ``init_cfg``, and under
    any prefix that is registered so far.

    Args:
        allow_pickle: Run the code that pickled files hold: checkpoints, also a teacher's, and ``.pkl`` annotations.
    """
    provide_interp2d()
    guard_files(allow_pickle)

    def load_from_guarded(path: str, map_location: Any = None) -> dict[str, Any]:
        return read_checkpoint(path, map_location)

    CheckpointLoader.register_scheme(tuple(CheckpointLoader._schemes), load_from_guarded, force=True)
    register_backend('local', AtomicBackend, prefixes='', force=True)


def run_of(checkpoint: dict[str, Any]) -> str:
    """Return the id of the run that wrote a checkpoint, '' where it has none."""
    try:
        return checkpoint['message_hub']['runtime_info'].get(RUN_ID, '')
    except (AttributeError, KeyError, TypeError):  # not of mmengine's runner
        return ''


def save_weights(weights: dict[str, torch.Tensor], path: str | Path, meta: dict[str, Any]) -> None:
    """Write weights alone, whole or not at all, readable without pickled code."""
    with io.BytesIO() as buffer:
        plain: Any = OrderedDict((name, tensor.detach().cpu()) for name, tensor in weights.items())
        # The versions by which modules recognise older files.
        plain._metadata = {
            name: {'version': about['version']}
            for name, about in getattr(weights, '_metadata', {}).items()
            if 'version' in about
        }
        torch.save({'state_dict': plain, 'meta': meta}, buffer)
        AtomicBackend().put(buffer.getvalue(), str(path))
