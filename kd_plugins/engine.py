"""What every command does between reading a config and running it."""

import os
from collections.abc import Iterable
from typing import Any

import torch
from mmengine.config import Config

from kd_plugins.checkpoint import guard_checkpoints
from kd_plugins.errors import UserError
from kd_plugins.registry import type_name


def prepare_run(
    config: Config, launcher: str = 'none', allow_pickle: bool = False, skip_corrupt: bool = False, amp: bool = False,
) -> None:
    """Make a config, and this process, ready for mmengine's runner.

    Args:
        config: The config, changed in place.
        launcher: What has started the processes, as mmengine names it.
        allow_pickle: Run the code that pickled checkpoints hold. Only for files that you trust.
        skip_corrupt: Leave images that cannot be read out of the training data.
        amp: Train under bfloat16 autocast.

    Raises:
        UserError: The processes were not started by the launcher.
    """
    config.launcher = launcher
    guard_checkpoints(allow_pickle)
    _add_hooks(config)
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):  # every image is scored, or none
        _check_images(config.get(name), skip_corrupt and name == 'train_dataloader')
    if amp:
        config.optim_wrapper = {key: value for key, value in config.optim_wrapper.items()
                                if key not in ('loss_scale', 'dtype')} | {'type': 'kd_plugins.BF16OptimWrapper'}
    if launcher == 'pytorch' and 'RANK' not in os.environ:
        raise UserError('--launcher pytorch: this process was not started by it; use torchrun --nproc_per_node N '
                        'before the script, or leave the option out')
    if not torch.cuda.is_available():
        _use_cpu(config)


def scope_of(config: Config) -> str:
    """Return the package whose networks a config describes."""
    if config.get('default_scope'):
        return config.default_scope
    model = config.model
    while 'student' in model:
        model = model['student']
    kind = model.get('type', '')  # a class, in a config by read_base
    return model.get('_scope_') or (kind if isinstance(kind, str) else kind.__module__).partition('.')[0]


def _add_hooks(config: Config) -> None:
    # Config stores a copy of a dict, so that setdefault would return one that is not part of it.
    hooks = dict(config.get('default_hooks') or {})
    hooks.setdefault('reseed', dict(type='kd_plugins.ReseedHook'))
    hooks.setdefault('integrity', dict(type='kd_plugins.IntegrityHook'))
    hooks.setdefault('check', dict(type='kd_plugins.CheckHook'))
    hooks.setdefault('corruption', dict(type='kd_plugins.CorruptionHook'))
    if hooks.get('checkpoint', {}) is not None:  # without checkpoints there is none to export
        hooks.setdefault('export', dict(type='kd_plugins.ExportHook'))
    config.default_hooks = hooks


def _records(node: Any) -> Iterable[dict[str, Any]]:
    """Yield every dictionary of a config, from the outermost in."""
    if isinstance(node, dict):
        yield node
        node = node.values()
    if isinstance(node, Iterable) and not isinstance(node, str):
        for value in node:
            yield from _records(value)


def _check_images(node: Any, skip_corrupt: bool) -> None:
    """Load the images below a node of the config through ``LoadImage``, which notices broken ones."""
    for record in _records(node):
        options = {key for key, value in record.items() if value is not None}
        if type_name(record) == 'LoadImageFromFile' and options <= {
                'type', 'to_float32', 'color_type', 'imdecode_backend', 'backend_args'}:
            record['type'] = 'kd_plugins.LoadImage'
        if type_name(record) == 'LoadImage':
            record['skip_corrupt'] = skip_corrupt


def _use_cpu(config: Config) -> None:
    """Let several processes run without a GPU; mmengine's own set-up asks CUDA for one."""
    if config.launcher == 'pytorch':
        torch.distributed.init_process_group('gloo')
        config.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None,
            find_unused_parameters=config.get('find_unused_parameters', False))
