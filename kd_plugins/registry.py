"""Child registries of mmengine's, in scope ``kd_plugins``.

mmengine imports ``<scope>.registry`` when it meets an unknown scope, and the locations below when it first looks a
name up, so ``type='kd_plugins.NSTLoss'`` is found in any config. On an mmcv without compiled operators the config also
needs ``custom_imports=dict(imports=['kd_plugins'])``: mmdet imports them before it looks at any name.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from mmengine import registry as mmengine_registry
from mmengine.registry import Registry
from torch import nn

from kd_plugins.errors import UserError
from kd_plugins.utils.names import did_you_mean, nearest


def _child(parent: Registry, *locations: str) -> Registry:
    return Registry(parent.name, parent=parent, scope='kd_plugins', locations=[f'kd_plugins.{x}' for x in locations])


MODELS = _child(mmengine_registry.MODELS, 'losses', 'models')
HOOKS = _child(mmengine_registry.HOOKS, 'hooks')
DATASETS = _child(mmengine_registry.DATASETS, 'datasets')
DATA_SAMPLERS = _child(mmengine_registry.DATA_SAMPLERS, 'datasets')
TRANSFORMS = _child(mmengine_registry.TRANSFORMS, 'datasets')
FUNCTIONS = _child(mmengine_registry.FUNCTIONS, 'datasets')
OPTIM_WRAPPERS = _child(mmengine_registry.OPTIM_WRAPPERS, 'optim')
METRICS = _child(mmengine_registry.METRICS, 'evaluation')


def type_name(record: dict[str, Any]) -> str:
    """Return the name of what a record builds, without its package; a config by ``read_base`` has the class itself."""
    kind = record.get('type', '')
    return kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', '')


def checked_arguments(what: str, callable_: Any, record: Mapping[str, Any]) -> None:
    """Check a record against what it is for.

    Raises:
        UserError: An option is misspelt (the nearest is offered) or missing.
    """
    options = {name: p for name, p in inspect.signature(callable_).parameters.items() if p.kind is not p.VAR_KEYWORD}
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(callable_).parameters.values()):
        return
    for name in record:
        if name not in options:
            raise UserError(f"{what} has no option '{name}': {did_you_mean(name, options)}")
    for name, parameter in options.items():
        if parameter.default is parameter.empty and name not in record:
            raise UserError(f"{what} needs the option '{name}'")


def build_part(what: str, record: Mapping[str, Any] | nn.Module) -> nn.Module:
    """Build a loss or an adapter from its record.

    Raises:
        UserError: The type is unknown (near names are offered), or an option is misspelt or out of range.
    """
    if isinstance(record, nn.Module):
        return record
    if not isinstance(record, Mapping) or 'type' not in record:
        raise UserError(f"{what} must be a record with a 'type', as in dict(type='kd_plugins.NSTLoss'), got {record!r}")
    name = record['type']
    try:
        class_ = MODELS.get(name) if isinstance(name, str) else name
    except (RuntimeError, ImportError):
        class_ = None
    if class_ is None:
        like = nearest(f'kd_plugins.{str(name).rpartition(".")[2]}', [f'kd_plugins.{x}' for x in MODELS.module_dict], 3)
        raise UserError(f"{what}: '{name}' is no registered module; {like}")
    options = {key: value for key, value in record.items() if key != 'type'}
    checked_arguments(f'{what} ({class_.__name__})', class_, options)
    try:
        return class_(**options)
    except ValueError as error:
        raise UserError(f'{what}: {error}') from error
