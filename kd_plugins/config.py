"""Configs of the command lines: read them, and check them before anything is built."""

import logging
import math
import os
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import FUNCTIONS, MODELS, OPTIMIZERS, Registry
from mmengine.utils import import_modules_from_strings

from kd_plugins.errors import UserError, user_named
from kd_plugins.registry import HOOKS, check_arguments, check_model, type_name
from kd_plugins.unpickling import guard_files
from kd_plugins.utils.names import first, nearest
from kd_plugins.utils.packages import packaged_config

PACKAGE = Path(__file__).parent / '.mim'  # where configs/ and tools/ are, as in OpenMMLab's packages


def default_work_dir(path: str | Path, variant: str | None = None) -> str:
    """Return ``work_dirs/<path below configs/, without .py>``; for a config elsewhere, its name.

    A config whose run depends on the environment, as on ``METHOD``, states that as its ``variant``: one more folder.
    """
    parts = Path(path).with_suffix('').parts
    below = parts[len(parts) - parts[::-1].index('configs') :] if 'configs' in parts else parts[-1:]
    return str(Path('work_dirs', *below, variant or ''))


def trained(config: str, variant: str | None = None) -> dict[str, str]:
    """Return what a config's run leaves, as ``requires`` and a teacher name it.

    Args:
        config: Path of the config, as ``'configs/cifar10/resnet26.py'``.
        variant: The config's ``variant``, where it has one.

    Returns:
        ``dict(config=..., checkpoint=...)`` with ``student.pth`` of the default work folder.
    """
    return dict(config=config, checkpoint=f'{default_work_dir(config, variant)}/student.pth')


def terms_of(methods: Mapping[str, list[dict[str, Any]]], names: str) -> list[dict[str, Any]]:
    """Return the terms of a method, or the sum of several.

    Args:
        methods: Lists of terms by name, as in ``configs/_base_/methods.py``.
        names: One name, or several joined by ``+``, as ``'kd+nst_poly'``.

    Raises:
        UserError: A name is unknown, or two lists have a term of the same name.
    """
    terms: dict[str, dict[str, Any]] = {}
    for name in names.split('+'):
        if name not in methods:
            raise UserError(
                f"METHOD={names}: there is no method '{name}'; methods, several of them joined by +, are "
                f'{", ".join(methods)}'
            )
        for term in methods[name]:
            if term['name'] in terms:
                raise UserError(f"METHOD={names}: two of the methods have a term '{term['name']}': give one of them")
            terms[term['name']] = term
    return list(terms.values())


def task_weight_of(weights: Mapping[str, float], names: str) -> float:
    """Return the weight that a method, or the sum of several, gives the task's loss: 1, or the least of those stated.

    Args:
        weights: Weights by name of the method, as ``task_weights`` in ``configs/_base_/methods.py``.
        names: One name, or several joined by ``+``.
    """
    return min((weights[name] for name in names.split('+') if name in weights), default=1.0)


def located(text: str, config: str | Path) -> str:
    """Return where a relative path is that a config names.

    That is here, or else beside the folder ``configs`` that has the config, or else beside this package's configs. A
    path that is in none of these places is meant from here.
    """
    parts = Path(config).resolve().parts
    beside = [os.path.join(*parts[: len(parts) - 1 - parts[::-1].index('configs')])] if 'configs' in parts else []
    places = [text, *(os.path.join(folder, text) for folder in (*beside, str(PACKAGE)))]
    return next(filter(os.path.exists, places), text)


def config_file(name: str) -> str:
    """Return the file of a config that is named by its path, or as ``package::path``.

    Raises:
        UserError: There is no such file or package.
    """
    path = packaged_config(name) or Path(name)
    if not path.is_file():
        if others := sorted(file.name for file in path.parent.glob('*.py')):
            raise UserError(f'config {name} does not exist; {nearest(path.name, others)}')
        raise UserError(
            f'config {name} does not exist: give the path of a .py file, as configs/nst_voc.py, or of an installed '
            "package's, as kd_plugins::nst_voc.py"
        )
    return str(path)


# Keys of files and folders that a run writes: they are meant from where it is started.
_WRITTEN = {'work_dir', 'out_dir', 'cache', 'save_dir', 'save_to', 'out_file_path', 'test_out_dir'}


def load_config(path: str, work_dir: str | None = None, options: dict[str, Any] | None = None) -> Config:
    """Read a config, locate the paths in it, and settle where its run lives.

    Args:
        path: A file, or ``package::path`` of an installed package's.
        work_dir: Folder of the run, in place of the config's own.
        options: Values that replace the config's, by their dotted keys.

    Raises:
        UserError: The file is missing or does not evaluate, or a module that it imports cannot be imported.
    """
    path, options = config_file(path), options or {}
    guard_files()  # a config may be YAML
    try:
        config = Config.fromfile(path, import_custom_modules=False)
        config = Config(
            {key: config[key] for key in config.to_dict()},  # not what a config by read_base imports
            config.text,
            path,
            config.env_variables,
            format_python_code=False,  # mmengine writes a run's config six times; yapf would take half a second each
        )
    except UserError as error:  # raised by the config itself
        raise UserError(f'{path}: {error}') from error
    except FileNotFoundError as error:
        file = Path(error.filename or path)
        near = nearest(file.name, [other.name for other in file.parent.glob('*.py')])
        raise UserError(f'{path} names {os.path.relpath(file)}, which does not exist; {near}') from error
    except (Exception, SystemExit) as error:
        if type(error) is RuntimeError and not str(error):  # of mmengine's, for what a config by read_base imports
            raise UserError(
                f'{path} is no valid config: it uses what it imports, which mmengine allows only beside _base_: begin '
                'it with _base_ = []'
            ) from error
        raise UserError(f'{path} is no valid config: {type(error).__name__}: {error}') from error
    _check_options(config, options)
    try:
        config.merge_from_dict(options)
    except Exception as error:
        raise UserError(
            f'--cfg-options {" ".join(options)}: not possible in {path}: {type(error).__name__}: {error}'
        ) from error
    if config.get('custom_imports'):
        try:
            import_modules_from_strings(**config.custom_imports)
        except Exception as error:
            raise UserError(
                f"{path}: custom_imports is {config.custom_imports}, expected dict(imports=['module']) of "
                f'modules that can be imported ({type(error).__name__}: {error}); for a module of your own, put its '
                'folder into PYTHONPATH'
            ) from error
    variant = config.get('variant')
    if not isinstance(variant, (str, type(None))):
        raise UserError(
            f"{path}: variant is {_short(variant)}, expected a text, the last part of the run's folder: rename it if "
            'it is a name of your own'
        )
    try:
        given = config.get('work_dir')
        for _, node in [('', config), *walk(config)]:
            for key, text in () if isinstance(node, tuple) else _items(node):
                # The paths of this project's configs begin so.
                if (
                    isinstance(text, str)
                    and text.startswith(('configs/', 'data/', 'work_dirs/'))
                    and key not in _WRITTEN
                    and not (key == 'root' and node is config)  # a study's
                ):
                    node[key] = located(text, path)
        config.work_dir = work_dir or given or default_work_dir(path, variant)
        user_named(text for _, text in walk(config) if isinstance(text, str))
    except ImportError as error:  # a config by read_base imports a class when the class is looked at
        raise UserError(f'{path} is no valid config: {error}') from error
    return config


def _check_options(config: Config, options: Iterable[str]) -> None:
    """Refuse an option that nothing would read: a slip, or a variable that the file has copied when it was read."""
    for option in options:
        key, _, below = option.partition('.')
        if key in _READ or key == 'variant':
            continue
        if key not in config:
            if similar := [x for x in {*config} | _READ if one_slip(key, x)]:
                raise UserError(f"--cfg-options {option}: nothing reads '{key}'; did you mean '{min(similar)}'?")
            if places := [path for path, _ in _read_values(config) if path.endswith(f'.{key}')]:
                raise UserError(f"--cfg-options {option}: nothing reads '{key}'; did you mean '{places[0]}'?")
            continue
        value = config[key]
        for path, copied in _read_values(config):
            whole = isinstance(value, (list, Mapping)) and len(value) > 0  # a name is not needed to tell it
            same = (whole or path.endswith(f'.{key}')) and copied == value
            if whole and isinstance(value, Mapping) and isinstance(copied, Mapping):
                same |= all(copied.get(x) == y for x, y in value.items())
            if same:
                raise UserError(
                    f"--cfg-options {option}: '{key}' was copied when the file was read, and is read no more: give "
                    f'{path}{below and f".{below}"}'
                )


def _read_values(config: Config) -> Iterator[tuple[str, Any]]:
    """Yield the values of a config that a run reads, with their dotted paths."""
    for path, value in walk(config):
        if path.partition('.')[0] in _READ:
            yield path, value


def without_workers(loader: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a data loader that loads in this process, without the options of workers alone."""
    kept = {key: value for key, value in loader.items() if key not in ('prefetch_factor', 'timeout')}
    return kept | dict(num_workers=0, persistent_workers=False)


def walk(node: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """Yield every value below a config or a part of one, from the outermost in, with its dotted path."""
    for key, value in _items(node):
        below = f'{path}.{key}' if path else str(key)
        yield below, value
        yield from walk(value, below)


def _items(node: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(node, (Mapping, Config)):
        return node.items()
    return enumerate(node) if isinstance(node, (list, tuple)) else ()


@dataclass(frozen=True)
class _Kind:
    """A kind of value, in words and as a test."""

    words: str
    fits: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_config_dict(value: Any) -> bool:
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
_CONFIG_DICT = _Kind("a config dict with a type, as dict(type='...')", _is_config_dict)
_CONFIG_DICTS = _Kind(
    "a list of config dicts, each with a type, as [dict(type='...')]", lambda x: _is_list(x, _is_config_dict)
)
_STEPS = _Kind(_CONFIG_DICTS.words, lambda x: _is_list(x, lambda step: _is_config_dict(step) or callable(step)))
_ONE_OR_MORE = _Kind(
    'config dicts with a type, one or a list', lambda x: _is_config_dict(x) or _is_list(x, _is_config_dict, 1)
)
_PART = _Kind(
    'a config dict, or None', lambda x: x is None or isinstance(x, Mapping) or _is_list(x, _is_config_dict, 1)
)
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
    'model': _CONFIG_DICT,
    'model.*backbone': _PART,
    'model.*neck': _PART,
    'model.*head': _PART,
    'model.*head.loss': _CONFIG_DICT,
    'model.*head.num_classes': _whole(1),
    'model.*head.[0-9].num_classes': _whole(1),
    'model.*.in_channels': _CHANNELS,
    'model.*.out_channels': _CHANNELS,
    'model.student': _CONFIG_DICT,
    '*data_preprocessor': _or_none(_DICT),
    '*data_preprocessor.mean': _or_none(_NUMBERS),
    '*data_preprocessor.std': _or_none(
        _Kind('a list of numbers above 0', lambda x: _is_list(x, lambda y: _is_number(y) and y > 0))
    ),
    '*_dataloader': _or_none(_DICT),
    '*_dataloader.dataset': _CONFIG_DICT,
    '*_dataloader.*.dataset': _CONFIG_DICT,
    '*_dataloader.sampler': _or_none(_CONFIG_DICT),
    '*_dataloader.batch_sampler': _or_none(_CONFIG_DICT),
    '*_dataloader.batch_size': _whole(1),
    '*_dataloader.num_workers': _whole(0),
    '*_dataloader.prefetch_factor': _or_none(_whole(1)),
    '*_dataloader.collate_fn': _CONFIG_DICT,
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
    'optim_wrapper.optimizer': _CONFIG_DICT,
    'optim_wrapper.clip_grad': _or_none(_DICT),
    'optim_wrapper.accumulative_counts': _whole(1),
    'optim_wrapper.paramwise_cfg': _or_none(_DICT),
    'optim_wrapper.optimizer.lr': _NUMBER,
    'optim_wrapper.optimizer.momentum': _NUMBER,
    'optim_wrapper.optimizer.weight_decay': _NUMBER,
    'param_scheduler': _or_none(
        _Kind(_ONE_OR_MORE.words, lambda x: isinstance(x, Mapping) or _is_list(x, _is_config_dict))
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
    'visualizer': _or_none(_CONFIG_DICT),
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
_GROUPS = {
    part: (f'{part}_dataloader', f'{part}_cfg', last)
    for part, last in (('train', 'optim_wrapper'), ('val', 'val_evaluator'), ('test', 'test_evaluator'))
}
_NEEDED: dict[str, dict[str, tuple[str, ...]]] = {
    'train': {
        'train_dataloader': ('dataset', 'sampler', 'batch_size'),
        'val_dataloader': ('dataset', 'sampler'),
        'optim_wrapper': ('optimizer',),
    },
    'test': {'test_dataloader': ('dataset', 'sampler')},
}
# All keys that mmengine's runner reads; the other keys of a config are its author's.
_READ = {path.partition('.')[0] for path in _VALUES if not path.startswith('*')}.union(
    *_GROUPS.values(), ('data_preprocessor', 'custom_imports', 'experiment_name')
)
# Data sets around others, of mmengine, mmdet and mmpretrain.
_WRAPPERS = {'ConcatDataset', 'RepeatDataset', 'ClassBalancedDataset', 'MultiImageMixDataset', 'KFoldDataset'}
# The options of mmengine's constructor of optimisers, which ignores any other in silence.
_PARAMWISE = {
    'custom_keys',
    'lr_mult',
    'decay_mult',
    'bias_lr_mult',
    'bias_decay_mult',
    'norm_decay_mult',
    'flat_decay_mult',
    'dwconv_decay_mult',
    'dcn_offset_lr_mult',
    'bypass_duplicate',
}


def check_config(config: Config, part: str = 'train', where: str | None = None) -> None:
    """Check a config before anything is built from it.

    Args:
        config: The config.
        part: What the run does, 'train' or 'test', or 'export', which needs the model alone.
        where: Name of the config in messages; by default its file.

    Raises:
        UserError: Something that ``part`` needs is missing, or a value is of another kind than expected.
    """
    where = where or config.filename or 'the config'
    if 'networks' in config and 'methods' in config:
        raise UserError(f'{where} is a study: kd-study {where} trains it')
    for key in sorted(_READ):
        near = [x for x in config if x not in _READ and one_slip(x, key)]
        if near and key not in config:
            raise UserError(
                f"{where} has '{near[0]}', which nothing reads, and no '{key}': correct it, or choose a "
                'less similar name'
            )
        if near:  # a variable of the author's own, or a slip in a config that inherits the key
            print_log(f"{where} has '{near[0]}', which nothing reads, beside '{key}'", 'current', logging.WARNING)
    _note_copies(config, where)
    _check_parts(config, part, where)
    for path, value in walk(config):
        if path.partition('.')[0] not in _READ:
            continue
        for kind in _kinds(path):
            if not kind.fits(value):
                raise UserError(f'{where}: {path} is {_short(value)}, expected {kind.words}')
        if isinstance(value, float) and math.isnan(value):
            raise UserError(f'{where}: {path} is NaN, expected a number')
        _check_wrapper(f'{where}: {path}', value)
        if path.endswith('.type') and not isinstance(value, str) and not callable(value):
            raise UserError(f'{where}: {path} is {_short(value)}, expected the name of a registered class')
        if (
            fnmatchcase(path, '*data_preprocessor')
            and value
            and len({len(value[x]) for x in ('mean', 'std') if value.get(x) is not None}) > 1
        ):
            raise UserError(f'{where}: {path} has mean={value["mean"]} and std={value["std"]}: give as many of both')
    scope = config.get('default_scope')
    if scope and scope not in MODELS.children and find_spec(scope) is None:
        raise UserError(f"{where}: default_scope is '{scope}', which is not an installed package")
    _check_optimiser(config, where)
    for path, model in (('model', config.model), ('model.student', config.model.get('student'))):
        if model is not None:
            check_model(f'{where}: {path}', model, scope)
    for key in _GROUPS.get(part, ())[:1] + (_GROUPS['val'][:1] if part == 'train' else ()):
        _check_registered(f'{where}: {key}.collate_fn', (config.get(key) or {}).get('collate_fn'), FUNCTIONS)
    for key, hook in (config.get('default_hooks') or {}).items():
        if hook is not None and not _is_config_dict(hook) and not callable(hook):
            raise UserError(f'{where}: default_hooks.{key} is {_short(hook)}, expected {_CONFIG_DICT.words}, or None')
    for hook in [*(config.get('default_hooks') or {}).values(), *(config.get('custom_hooks') or [])]:
        name = hook.get('type') if isinstance(hook, Mapping) else None
        known = HOOKS.get(name) if isinstance(name, str) and name.startswith('kd_plugins.') else None
        if known is not None:
            options = {key: value for key, value in hook.items() if key not in ('type', 'priority', '_scope_')}
            check_arguments(f'{where}: the config dict of {known.__name__}', known, options)
    _note_replaced_hooks(config, where)
    for path, value in _read_values(config) if part == 'train' else ():
        # A file may be written by a run that comes first.
        if fnmatchcase(path, '*teacher*.config') and isinstance(value, str) and '::' in value:
            try:
                packaged_config(value)
            except UserError as error:
                raise UserError(f'{where}: {path}: {error}') from error


def _check_wrapper(where: str, config: Any) -> None:
    """Refuse data sets inside another that only the data loader tells which epoch it is."""
    if not _is_config_dict(config) or (wrapper := type_name(config)) not in _WRAPPERS:
        return
    for _, part in [*_items(config.get('datasets')), ('dataset', config.get('dataset'))]:
        if _is_config_dict(part) and (name := type_name(part)) in ('RepeatedViews', 'BatchedImages'):
            raise UserError(f'{where} has {name} inside a {wrapper}: put {name} around the {wrapper}')


def _note_copies(config: Config, where: str) -> None:
    """Log where an inheriting config sets the terms or the teacher that the inherited one has copied into its hook."""
    for path, part in _read_values(config):
        if not isinstance(part, Mapping) or not str(part.get('type')).endswith(('DistillationHook', 'Distiller')):
            continue
        for key in ('terms', 'teacher'):
            given, copied = (x if isinstance(x, list) else [x] for x in (config.get(key), part.get(key)))
            if given != [None] and not any(x in copied for x in given):
                print_log(
                    f"{where}: none of '{key}' is in {path}.{key}, which was made when its file was read and alone is "
                    f'trained: set {path.partition(".")[0]} too',
                    'current',
                    logging.WARNING,
                )


def _note_replaced_hooks(config: Config, where: str) -> None:
    """Log the hooks of an inherited config that the list with a DistillationHook leaves out: lists replace lists."""
    own, file = [*map(type_name, config.get('custom_hooks') or [])], str(config.filename)
    if 'DistillationHook' not in own or not file.endswith('.py') or Config._is_lazy_import(file):
        return
    for base in Config._get_base_files(file):
        if '{{' in base:  # a variable, as {{ fileDirname }}, which mmengine fills in a copy of the file
            continue
        inherited = Config.fromfile(Config._get_cfg_path(base, file)[0], import_custom_modules=False)
        if lost := [x for x in map(type_name, inherited.get('custom_hooks') or []) if x not in own]:
            print_log(
                f'{where}: custom_hooks replaces the list of {base}, and leaves out its {first(lost)}: to keep what is '
                'there, write custom_hooks = [*_base_.custom_hooks, dict(...)]',
                'current',
                logging.WARNING,
            )


def _check_optimiser(config: Config, where: str) -> None:
    wrapper = config.get('optim_wrapper') or {}
    if wrapper.get('constructor', 'DefaultOptimWrapperConstructor') != 'DefaultOptimWrapperConstructor':
        return
    # Six configs of Twins have a misspelt _delete_ here, which is harmless.
    if unknown := {x for x in wrapper.get('paramwise_cfg') or {} if not x.startswith('_')} - _PARAMWISE:
        raise UserError(
            f"{where}: optim_wrapper.paramwise_cfg has no option '{min(unknown)}'; options are "
            f'{", ".join(sorted(_PARAMWISE))}'
        )
    with OPTIMIZERS.switch_scope_and_registry(config.get('default_scope')) as registry:
        _check_registered(f'{where}: optim_wrapper.optimizer', wrapper.get('optimizer'), registry)


def _check_registered(where: str, config: Any, registry: Registry) -> None:
    """Look up a type whose absence mmengine reports without a reason."""
    kind = config.get('type') if isinstance(config, Mapping) else None
    if isinstance(kind, str) and registry.get(kind) is None:
        known = (registry.parent or registry).module_dict
        raise UserError(f"{where}: type '{kind}' is not registered; {nearest(kind.rpartition('.')[2], known)}")


def _check_parts(config: Config, part: str, where: str) -> None:
    for key in (needed := ('model', *_GROUPS.get(part, ()))):
        if config.get(key) is None:
            what = {'train': 'train.py', 'test': 'scoring'}.get(part, part)
            raise UserError(f'{where} has no {key}: {what} needs {", ".join(needed)}; configs/ has examples')
    if part == 'train' and (given := [key for key in _GROUPS['val'] if config.get(key) is not None]):
        for key in _GROUPS['val']:
            if config.get(key) is None:
                raise UserError(
                    f'{where} has {" and ".join(given)} but no {key}: give all of {", ".join(_GROUPS["val"])}, or none'
                )
    if part == 'train' and not given:
        for hook in (config.get('default_hooks') or {}).values():
            if isinstance(hook, Mapping) and hook.get('save_best'):
                raise UserError(
                    f'{where}: save_best is {hook["save_best"]!r}, but without {", ".join(_GROUPS["val"])} '
                    'nothing is scored: give them, or leave it out'
                )
    for key, names in _NEEDED.get(part, {}).items():
        value = config.get(key)
        for name in names if isinstance(value, Mapping) and not {'constructor', 'batch_sampler'} & {*value} else ():
            if name not in value:
                raise UserError(f'{where}: {key} has no {name}: give it one')


@cache
def _kinds(path: str) -> list[_Kind]:
    return [kind for pattern, kind in _VALUES.items() if fnmatchcase(path, pattern)]


def _short(value: Any) -> str:
    return text if len(text := repr(value)) <= 80 else f'{text[:77]}...'


def one_slip(word: str, other: str) -> bool:
    """Return whether two words differ by one letter added, left out or replaced, or by two letters swapped.

    Names that differ in a digit name different things.
    """
    if word == other:
        return False
    same = next((i for i, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), min(len(word), len(other)))
    a, b = word[same:], other[same:]  # from where they differ
    letters = {*string.ascii_lowercase, '_'}
    return (
        (a[1:] == b and a[0] in letters)
        or (b[1:] == a and b[0] in letters)
        or bool(a and b and a[1:] == b[1:] and {a[0], b[0]} <= letters)
        or (a[:2] == b[1::-1] and a[2:] == b[2:])
    )
