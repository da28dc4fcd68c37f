"""The kinds of values that mmengine and this project read from a config, by their dotted paths."""

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any


@dataclass(frozen=True)
class _Kind:
    """A kind of value, in words and as a test."""

    words: str
    fits: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_config_dict(value: Any) -> bool:
    """Return whether a value names, by its type, what is built of it."""
    return isinstance(value, Mapping) and 'type' in value


def _is_list(value: Any, fits: Callable[[Any], bool], least: int = 0) -> bool:
    return isinstance(value, (list, tuple)) and len(value) >= least and all(map(fits, value))


def _whole(least: int, most: float = math.inf) -> _Kind:
    words = f'a whole number of at least {least}' if most == math.inf else f'a whole number from {least} to {most}'
    return _Kind(words, lambda x: _is_number(x) and isinstance(x, int) and least <= x <= most)


def _or_none(kind: _Kind) -> _Kind:
    return _Kind(f'{kind.words}, or None', lambda x: x is None or kind.fits(x))


_DICT = _Kind('a dict', lambda x: isinstance(x, Mapping))
_TEXT = _Kind('a text', lambda x: isinstance(x, str) and '\0' not in x)
_FLAG = _Kind('True or False', lambda x: isinstance(x, bool))
_NUMBER = _Kind('a finite number of at least 0', lambda x: _is_number(x) and x >= 0)
_LIMIT = _Kind('a number of at least 0', lambda x: x == math.inf or _NUMBER.fits(x))  # inf logs the norm, no more
_NUMBERS = _Kind('a list of finite numbers', lambda x: _is_list(x, _is_number))
CONFIG_DICT = _Kind("a config dict with a type, as dict(type='...')", is_config_dict)
_CONFIG_DICTS = _Kind(
    "a list of config dicts, each with a type, as [dict(type='...')]", lambda x: _is_list(x, is_config_dict)
)
_STEPS = _Kind(_CONFIG_DICTS.words, lambda x: _is_list(x, lambda step: is_config_dict(step) or callable(step)))
_ONE_OR_MORE = _Kind(
    'config dicts with a type, one or a list', lambda x: is_config_dict(x) or _is_list(x, is_config_dict, 1)
)
_PART = _Kind('a config dict, or None', lambda x: x is None or isinstance(x, Mapping) or _is_list(x, is_config_dict, 1))
_CHANNELS = _Kind(
    'a whole number of at least 1, or several', lambda x: not isinstance(x, (int, float, str)) or _whole(1).fits(x)
)
_INTERVAL = _Kind('a whole number of at least 1, or -1 for never', lambda x: _whole(-1).fits(x) and x != 0)
_CLASSES = _Kind(
    "a list or tuple of names (a single one needs a comma, as ('dog', )), or a file of them",
    lambda x: x is None or (os.path.isfile(x) if isinstance(x, str) else _is_list(x, lambda _: True, 1)),
)
_RANKS = _Kind(
    'a whole number of at least 1, or a tuple of such', lambda x: _whole(1).fits(x) or _is_list(x, _whole(1).fits, 1)
)
_LEVEL = _Kind(
    "a level of Python's logging, as 'INFO'",
    lambda x: not str(logging.getLevelName(x)).startswith('Level '),  # what it makes of any other
)

# The kinds of values that mmengine and this project read, by their dotted paths; * is any part of a path. Values that a
# config leaves out are not checked here.
_VALUES = {
    'model': CONFIG_DICT,
    'model.*backbone': _PART,
    'model.*neck': _PART,
    'model.*head': _PART,
    'model.*head.loss': CONFIG_DICT,
    'model.*head.num_classes': _whole(1),
    'model.*head.[0-9].num_classes': _whole(1),
    'model.*.in_channels': _CHANNELS,
    'model.*.out_channels': _CHANNELS,
    'model.student': CONFIG_DICT,
    '*data_preprocessor': _or_none(_DICT),
    '*data_preprocessor.mean': _or_none(_NUMBERS),
    '*data_preprocessor.std': _or_none(
        _Kind('a list of numbers above 0', lambda x: _is_list(x, lambda y: _is_number(y) and y > 0))
    ),
    '*_dataloader': _or_none(_DICT),
    '*_dataloader.dataset': CONFIG_DICT,
    '*_dataloader.*.dataset': CONFIG_DICT,
    '*_dataloader.sampler': _or_none(CONFIG_DICT),
    '*_dataloader.batch_sampler': _or_none(CONFIG_DICT),
    '*_dataloader.batch_size': _whole(1),
    '*_dataloader.num_workers': _whole(0),
    '*_dataloader.prefetch_factor': _or_none(_whole(1)),
    '*_dataloader.collate_fn': CONFIG_DICT,
    '*_dataloader.*pipeline': _STEPS,
    '*_dataloader.*.data_root': _or_none(_TEXT),
    '*_dataloader.*.data_prefix': _or_none(
        _Kind(
            'a text, or a list or dict of texts',
            lambda x: isinstance(x, (str, Mapping)) or _is_list(x, lambda y: isinstance(y, str), 1),
        )
    ),
    '*_dataloader.*.metainfo': _or_none(_DICT),
    '*_dataloader.*.classes': _CLASSES,
    '*_dataloader.*.filter_cfg': _or_none(_DICT),
    'train_cfg': _or_none(_DICT),
    'val_cfg': _or_none(_DICT),
    'test_cfg': _or_none(_DICT),
    'train_cfg.max_epochs': _whole(1),
    'train_cfg.max_iters': _whole(1),
    'train_cfg.val_interval': _Kind('a number of at least 1', lambda x: _is_number(x) and x >= 1),
    'train_cfg.val_begin': _whole(0),
    '*_evaluator': _or_none(_ONE_OR_MORE),
    'optim_wrapper': _or_none(_DICT),
    'optim_wrapper.optimizer': CONFIG_DICT,
    'optim_wrapper.clip_grad': _or_none(_DICT),
    'optim_wrapper.accumulative_counts': _whole(1),
    'optim_wrapper.paramwise_cfg': _or_none(_DICT),
    'optim_wrapper.optimizer.lr': _NUMBER,
    'optim_wrapper.optimizer.momentum': _NUMBER,
    'optim_wrapper.optimizer.weight_decay': _NUMBER,
    'param_scheduler': _or_none(
        _Kind(_ONE_OR_MORE.words, lambda x: isinstance(x, Mapping) or _is_list(x, is_config_dict))
    ),
    'param_scheduler.*.milestones': _NUMBERS,
    'param_scheduler.*.gamma': _NUMBER,
    'model.*head.topk': _RANKS,
    '*_evaluator*.topk': _RANKS,
    'model.*init_cfg': _or_none(
        _Kind(
            'config dicts, one or a list',
            lambda x: isinstance(x, Mapping) or _is_list(x, lambda y: isinstance(y, Mapping)),
        )
    ),
    'optim_wrapper.clip_grad.max_norm': _LIMIT,
    'runner_type': _Kind("'Runner'", lambda x: x == 'Runner'),
    'default_hooks': _or_none(_DICT),
    'custom_hooks': _or_none(_STEPS),
    'default_hooks.checkpoint.interval': _INTERVAL,
    'default_hooks.checkpoint.max_keep_ckpts': _INTERVAL,
    'default_hooks.logger.interval': _whole(1),
    'randomness': _DICT,
    'randomness.seed': _or_none(_whole(0, 2**32 - 1)),
    'env_cfg': _DICT,
    'visualizer': _or_none(CONFIG_DICT),
    'log_processor': _or_none(_DICT),
    'log_level': _LEVEL,
    'auto_scale_lr': _or_none(_DICT),
    'auto_scale_lr.base_batch_size': _whole(1),
    'work_dir': _TEXT,
    'load_from': _or_none(_TEXT),
    'resume': _or_none(_FLAG),
    'default_scope': _or_none(_TEXT),
    'compile': _Kind('True, False or a dict', lambda x: isinstance(x, (bool, Mapping))),
    'prepare': _CONFIG_DICTS,
    'prepare.*.type': _TEXT,
    'requires': _Kind(
        "a list of dict(config='...', checkpoint='...')",
        lambda x: _is_list(
            x,
            lambda y: (
                isinstance(y, Mapping) and isinstance(y.get('config'), str) and isinstance(y.get('checkpoint'), str)
            ),
        ),
    ),
    'compare': _Kind(
        "a dict of configs by the names of their runs, as dict(baseline='configs/...py')",
        lambda x: isinstance(x, Mapping) and all(isinstance(y, str) for pair in x.items() for y in pair),
    ),
    'beside': _FLAG,
    'note': _TEXT,
}
GROUPS = {
    part: (f'{part}_dataloader', f'{part}_cfg', last)
    for part, last in (('train', 'optim_wrapper'), ('val', 'val_evaluator'), ('test', 'test_evaluator'))
}
NEEDED: dict[str, dict[str, tuple[str, ...]]] = {
    'train': {
        'train_dataloader': ('dataset', 'sampler', 'batch_size'),
        'val_dataloader': ('dataset', 'sampler'),
        'optim_wrapper': ('optimizer',),
    },
    'test': {'test_dataloader': ('dataset', 'sampler')},
}
# All keys that mmengine's runner reads; the other keys of a config are its author's.
READ = {path.partition('.')[0] for path in _VALUES if not path.startswith('*')}.union(
    *GROUPS.values(), ('data_preprocessor', 'custom_imports', 'experiment_name')
)


@cache
def kinds_of(path: str) -> list[_Kind]:
    """Return what a value at a dotted path has to be, all of it."""
    return [kind for pattern, kind in _VALUES.items() if fnmatchcase(path, pattern)]
