"""What is checked of a config before anything is built from it."""

import logging
import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import FUNCTIONS, MODELS, OPTIMIZERS, Registry

from kd_plugins.config.reading import items_of, read_values, walk
from kd_plugins.config.values import CONFIG_DICT, GROUPS, NEEDED, READ, is_config_dict, kinds_of
from kd_plugins.errors import UserError
from kd_plugins.registry import HOOKS, check_arguments, check_model, type_name
from kd_plugins.utils.names import brief, first, nearest, one_slip
from kd_plugins.utils.packages import packaged_config

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
    for key in sorted(READ):
        near = [x for x in config if x not in READ and one_slip(x, key)]
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
        if path.partition('.')[0] not in READ:
            continue
        for kind in kinds_of(path):
            if not kind.fits(value):
                raise UserError(f'{where}: {path} is {brief(value)}, expected {kind.words}')
        if isinstance(value, float) and math.isnan(value):
            raise UserError(f'{where}: {path} is NaN, expected a number')
        _check_wrapper(f'{where}: {path}', value)
        if path.endswith('.type') and not isinstance(value, str) and not callable(value):
            raise UserError(f'{where}: {path} is {brief(value)}, expected the name of a registered class')
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
    for key in GROUPS.get(part, ())[:1] + (GROUPS['val'][:1] if part == 'train' else ()):
        _check_registered(f'{where}: {key}.collate_fn', (config.get(key) or {}).get('collate_fn'), FUNCTIONS)
    for key, hook in (config.get('default_hooks') or {}).items():
        if hook is not None and not is_config_dict(hook) and not callable(hook):
            raise UserError(f'{where}: default_hooks.{key} is {brief(hook)}, expected {CONFIG_DICT.words}, or None')
    for hook in [*(config.get('default_hooks') or {}).values(), *(config.get('custom_hooks') or [])]:
        name = hook.get('type') if isinstance(hook, Mapping) else None
        known = HOOKS.get(name) if isinstance(name, str) and name.startswith('kd_plugins.') else None
        if known is not None:
            options = {key: value for key, value in hook.items() if key not in ('type', 'priority', '_scope_')}
            check_arguments(f'{where}: the config dict of {known.__name__}', known, options)
    _note_replaced_hooks(config, where)
    for path, value in read_values(config) if part == 'train' else ():
        # A file may be written by a run that comes first.
        if fnmatchcase(path, '*teacher*.config') and isinstance(value, str) and '::' in value:
            try:
                packaged_config(value)
            except UserError as error:
                raise UserError(f'{where}: {path}: {error}') from error


def _check_wrapper(where: str, config: Any) -> None:
    """Refuse data sets inside another that only the data loader tells which epoch it is."""
    if not is_config_dict(config) or (wrapper := type_name(config)) not in _WRAPPERS:
        return
    for _, part in [*items_of(config.get('datasets')), ('dataset', config.get('dataset'))]:
        if is_config_dict(part) and (name := type_name(part)) in ('RepeatedViews', 'BatchedImages'):
            raise UserError(f'{where} has {name} inside a {wrapper}: put {name} around the {wrapper}')


def _note_copies(config: Config, where: str) -> None:
    """Log where an inheriting config sets the terms or the teacher that the inherited one has copied into its hook."""
    for path, part in read_values(config):
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
    for key in (needed := ('model', *GROUPS.get(part, ()))):
        if config.get(key) is None:
            what = {'train': 'train.py', 'test': 'scoring'}.get(part, part)
            raise UserError(f'{where} has no {key}: {what} needs {", ".join(needed)}; configs/ has examples')
    if part == 'train' and (given := [key for key in GROUPS['val'] if config.get(key) is not None]):
        for key in GROUPS['val']:
            if config.get(key) is None:
                raise UserError(
                    f'{where} has {" and ".join(given)} but no {key}: give all of {", ".join(GROUPS["val"])}, or none'
                )
    if part == 'train' and not given:
        for hook in (config.get('default_hooks') or {}).values():
            if isinstance(hook, Mapping) and hook.get('save_best'):
                raise UserError(
                    f'{where}: save_best is {hook["save_best"]!r}, but without {", ".join(GROUPS["val"])} '
                    'nothing is scored: give them, or leave it out'
                )
    for key, names in NEEDED.get(part, {}).items():
        value = config.get(key)
        for name in names if isinstance(value, Mapping) and not {'constructor', 'batch_sampler'} & {*value} else ():
            if name not in value:
                raise UserError(f'{where}: {key} has no {name}: give it one')
