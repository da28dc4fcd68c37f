"""Where a teacher comes from: its config and its weights."""

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mmengine
from mmengine.hub import get_config
from mmengine.logging import print_log
from mmengine.model import BaseDataPreprocessor, BaseModule
from torch import nn

from kd_plugins.checkpoint import load_weights
from kd_plugins.errors import UserError
from kd_plugins.pretrained import check_pretrained
from kd_plugins.registry import MODELS, type_name
from kd_plugins.utils.names import first


def build_teacher(
    config: str | dict[str, Any],
    checkpoint: str | None,
    data_preprocessor: dict[str, Any] | None = None,
    allow_pickle: bool = False,
) -> nn.Module:
    """Build a teacher's network, see :func:`build_network`, and load its weights.

    Args:
        config: As for :func:`build_network`.
        checkpoint: File or address of the weights. With ``None``, the ``init_cfg`` of the network's parts loads them;
            parameters that stay random are logged.
        data_preprocessor: As for :func:`build_network`.
        allow_pickle: Whether to run the code in a pickled checkpoint; only for files that you trust.

    Raises:
        UserError: The config or the checkpoint is missing, or they do not match.
    """
    if not isinstance(checkpoint, (str, Path, type(None))):
        raise UserError(f"a teacher's checkpoint must be a path, an address or None, got {checkpoint!r}")
    network = build_network(config, data_preprocessor)
    if checkpoint is not None:
        load_weights(network, checkpoint, allow_pickle)
    else:
        _initialise(network)
    return network


def build_network(
    config: str | dict[str, Any],
    data_preprocessor: dict[str, Any] | None = None,
) -> nn.Module:
    """Build a network without loading weights.

    Args:
        config: Path of a config, ``package::path`` of a stock one (``mmpretrain::resnet/resnet101_8xb32_in1k.py``), or
            a model's config dict. For a model that distils, its student is built.
        data_preprocessor: Config dict of the preprocessor that the network was trained with, in place of its own. One
            without mean and std means raw pixels; an empty one means the student's batch as it is.

    Raises:
        UserError: The config is missing.
    """
    scope = None
    if isinstance(config, str):
        try:
            file = get_config(config) if '::' in config else mmengine.Config.fromfile(config)
        except FileNotFoundError as error:
            raise UserError(f'teacher config {config} does not exist: give a path or package::path') from error
        except Exception as error:  # from the config's code, or from mmengine about the package
            raise UserError(
                f'teacher config {config}: {type(error).__name__}: {error}; give a path or package::path'
            ) from error
        if 'model' not in file:
            raise UserError(f'the teacher config {file.filename} has no model: give the config of a whole network')
        scope = file.get('default_scope')
        model = file.model
        model.setdefault('data_preprocessor', file.get('data_preprocessor'))
    elif isinstance(config, Mapping) and 'type' in config:
        model = config
    else:
        raise UserError(
            f"a teacher's config must be a path, package::path, or a model's config dict with a 'type', got {config!r}"
        )
    while type_name(model) in ('Distiller', 'MutualLearning', 'NativeEnsemble'):  # itself distilled
        model = {'data_preprocessor': model.get('data_preprocessor')} | dict(model['student'])
    model = copy.deepcopy(dict(model))  # mmdet modifies config dicts while building
    if data_preprocessor is not None:
        model['data_preprocessor'] = data_preprocessor or None
    with MODELS.switch_scope_and_registry(scope) as registry:
        network = registry.build(model)
    if model.get('data_preprocessor') is None and hasattr(network, 'data_preprocessor'):
        network.data_preprocessor = BaseDataPreprocessor()  # mmpretrain's default would mean raw pixels
    return network


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if not isinstance(module, BaseModule):
            # Else mmengine calls init_weights, by which timm and transformers re-initialise.
            module.is_init = True  # type: ignore[assignment]  # torch declares tensors and modules only
    if isinstance(network, BaseModule):
        network.init_weights()
    random = dict(network.named_parameters())
    for name, found, _ in check_pretrained(network):
        for key in found:
            random.pop(f'{name}.{key}'.lstrip('.'), None)
    if random:
        print_log(
            f'the teacher has no checkpoint, and random weights in {first(list(random))}: give it a checkpoint, unless '
            'its network loads weights itself',
            'current',
            logging.WARNING,
        )
