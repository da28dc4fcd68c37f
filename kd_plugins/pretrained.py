"""Whether modules have got the weights that their ``init_cfg`` names."""

import copy
from collections.abc import Iterator
from typing import Any

import torch

from kd_plugins.checkpoint import load_loosely, read_checkpoint, read_weights
from kd_plugins.errors import UserError
from kd_plugins.registry import type_name
from kd_plugins.utils.names import first


def check_pretrained(model: torch.nn.Module) -> Iterator[tuple[str, dict[str, torch.Tensor], str]]:
    """Check that each module with ``init_cfg=dict(type='Pretrained', ...)`` has its checkpoint's weights, all of them.

    mmengine loads such a checkpoint loosely: with a wrong prefix nothing is loaded, and training starts from random
    weights.

    Yields:
        Name of a module, those of its tensors that are the checkpoint's, and the checkpoint's path.

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
                f"{name or 'the model'} does not have its pretrained weights: under '{prefix}' in {path}, {problem}; "
                f'both configs must describe the same {name or "model"}'
            )
        yield name, found, path


def check_readable(model: torch.nn.Module) -> None:
    """Read every checkpoint that an ``init_cfg`` names, before mmengine does, which runs the code in pickled ones.

    Raises:
        UserError: A checkpoint is missing, damaged or pickled.
    """
    for _, _, path, _ in _pretrained(model):
        read_checkpoint(path)


def check_arrival(model: torch.nn.Module) -> None:
    """Check that each module with ``init_cfg=dict(type='Pretrained', ...)`` has at least one tensor of its checkpoint.

    The tensor may have any name in the checkpoint.

    Raises:
        UserError: A module has none.
    """
    for name, module, path, prefix in _pretrained(model):
        checkpoint = read_checkpoint(path)
        groups = [checkpoint, *(group for group in checkpoint.values() if isinstance(group, dict))]
        given = [x for group in groups for x in group.values() if isinstance(x, torch.Tensor) and x.is_floating_point()]
        # Constants, as of a new BatchNorm, may be equal by chance.
        own = [x.detach().cpu() for x in module.parameters() if x.numel() > 1 and x.min() < x.max()]
        if own and not any(x.shape == y.shape and torch.equal(x, y.to(x.dtype)) for x in own for y in given):
            raise UserError(
                f'{name or "the model"} does not have its pretrained weights: no tensor of it is one of {path}'
                f'{f", prefix {prefix}" if prefix else ""}; give the checkpoint of such a network, and the '
                'prefix of its names, or leave init_cfg out'
            )


def _pretrained(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, str, str]]:
    """Yield each module with a pretrained ``init_cfg``, but not its parts: mmengine loads the outermost file last."""
    loaded: list[str] = []
    for name, module in model.named_modules():
        if any(not outer or name.startswith(f'{outer}.') for outer in loaded):
            continue
        given = getattr(module, 'init_cfg', None) or []
        for config in [given] if isinstance(given, dict) else given:
            if type_name(config) in ('Pretrained', 'PretrainedInit'):
                loaded.append(name)
                yield name, module, config['checkpoint'], config.get('prefix') or ''


def _converted(module: torch.nn.Module) -> tuple[dict[str, torch.Tensor], str]:
    """Return the tensors that a module takes from a file which its own code converts, as mmdet's Swin, and the problem.

    Such files lack norms that the detector adds: one tensor must be the file's, not all.
    """
    fresh: Any = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.fill_(torch.nan)
    fresh.init_weights()
    found = {key: value for key, value in fresh.named_parameters() if not value.isnan().any()}
    return found, '' if found else 'no tensor fits'
