"""Registries of scope ``kd_plugins``, children of mmengine's.

mmengine imports ``<scope>.registry`` for an unknown scope, and the locations below at the first lookup of a name, so
``type='kd_plugins.NSTLoss'`` is found in any config. With an mmcv without compiled operators, the config also needs
``custom_imports=dict(imports=['kd_plugins'])``: mmdet imports the operators before any lookup.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from mmengine import registry as mmengine_registry
from mmengine.registry import Registry
from torch import nn

from kd_plugins.errors import UserError
from kd_plugins.utils.names import brief, did_you_mean, nearest


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


def type_name(config: Mapping[str, Any]) -> str:
    """Return the name of a config dict's type, without its package; in configs by ``read_base`` the type is a class."""
    kind = config.get('type', '')
    return kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', '')


def check_arguments(what: str, callable_: Any, config: Mapping[str, Any]) -> None:
    """Check the keys of a config dict against the parameters of the callable that gets them.

    Args:
        what: Name of the thing to build, for messages.
        callable_: Class or function that is called with the config dict.
        config: The config dict, without its type.

    Raises:
        UserError: An option is misspelt (the message names the nearest) or missing.
    """
    options = {name: p for name, p in inspect.signature(callable_).parameters.items() if p.kind is not p.VAR_KEYWORD}
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(callable_).parameters.values()):
        return
    for name in config:
        if name not in options:
            raise UserError(f"{what} has no option '{name}': {did_you_mean(name, options)}")
    for name, parameter in options.items():
        if parameter.default is parameter.empty and name not in config:
            raise UserError(f"{what} needs the option '{name}'")


def build_part(what: str, config: Mapping[str, Any] | nn.Module) -> nn.Module:
    """Build a loss or an adapter from its config dict; return a module as it is.

    Raises:
        UserError: The type is unknown (the message lists near names), or an option is misspelt or out of range.
    """
    if isinstance(config, nn.Module):
        return config
    if not isinstance(config, Mapping) or 'type' not in config:
        raise UserError(
            f"{what} must be a config dict with a 'type', as in dict(type='kd_plugins.NSTLoss'), got {brief(config)}"
        )
    name = config['type']
    try:
        class_ = MODELS.get(name) if isinstance(name, str) else name
    except (RuntimeError, ImportError):
        class_ = None
    if class_ is None:
        near = nearest(f'kd_plugins.{str(name).rpartition(".")[2]}', [f'kd_plugins.{x}' for x in MODELS.module_dict], 3)
        raise UserError(f"{what}: '{name}' is not a registered module; {near}")
    options = {key: value for key, value in config.items() if key != 'type'}
    check_arguments(f'{what} ({class_.__name__})', class_, options)
    try:
        return class_(**options)
    except ValueError as error:
        raise UserError(f'{what}: {error}') from error


def check_model(what: str, config: Mapping[str, Any], scope: str | None = None) -> None:
    """Check that a config dict describes a whole model, not a part of one.

    Args:
        what: Name of the model in the config, for messages.
        config: The config dict.
        scope: Package of a type without a prefix; by default the current one.

    Raises:
        UserError: Its type cannot be trained by itself, as a backbone; the message shows how to make a model of it.
    """
    name = config.get('type')
    try:
        with MODELS.switch_scope_and_registry(config.get('_scope_', scope)) as registry:
            class_ = registry.get(name) if isinstance(name, str) else name
    except (ImportError, RuntimeError, TypeError, ValueError):  # which the build raises with what it was doing
        return
    if class_ is not None and not hasattr(class_, 'train_step'):
        name = name if isinstance(name, str) else class_.__name__
        key = what.rpartition(' ')[2].rpartition('.')[2]
        raise UserError(
            f"{what} is a {name}, which is no whole model: for a backbone alone give {key}=dict(type='mmpretrain."
            f"ImageClassifier', backbone=dict(type='{name}', ...)), which learns without a head under a distillation's "
            "task='off'"
        )
