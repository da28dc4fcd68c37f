"""Checks of a study file, made before anything trains."""

import copy
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.config import Config, ConfigDict
from torch import nn

from kd_plugins.config import check_config
from kd_plugins.datasets.corruption import check_options
from kd_plugins.distillation.distillation import build_terms
from kd_plugins.distillation.recorder import Recorder
from kd_plugins.distillation.sources import build_teacher, source_and_options
from kd_plugins.errors import UserError
from kd_plugins.hooks import DistillationHook
from kd_plugins.registry import MODELS, check_arguments, type_name
from kd_plugins.studies.run import Run
from kd_plugins.studies.search import check_search
from kd_plugins.utils.names import one_slip
from kd_plugins.utils.random import preserved_rng

# The keys of a study's config dicts; a misspelt one would otherwise be ignored in silence.
_KEYS = {
    'networks': {'config', 'teacher', 'terms_from', 'replace', 'overrides', 'methods'},
    'teachers': {'config', 'replace', 'overrides', 'given'},
    'methods': {'terms', 'wrap', 'overrides', 'first', 'hook', 'teacher_cache', 'search'},
    'corruptions': {'label_noise', 'imbalance', 'common', 'teacher_common'},
}
_CHOICES = dict(
    teacher_data=('clean', 'same'),
    teacher_seeds=('one', 'each'),
    average=('mean', 'median'),
    columns=(None, 'network', 'corruption'),
    error=(False, True),
    fraction=(False, True),
)
_KINDS: dict[str, tuple[Any, tuple[str, ...]]] = {
    'a dict': (Mapping, ('wrap', 'hook', 'overrides', 'common', 'teacher_common', 'given')),
    'a list': ((list, tuple), ('terms', 'replace', 'references')),
    'a text': (str, ('metric', 'terms_from', 'notes')),
    'a text, or None': ((str, type(None)), ('title', 'root')),
}
# A teacher's seed is larger than its students' by this: a teacher of a student's own architecture would else be its
# baseline.
TEACHER_SEED = 1000


def check_study(path: str, options: Mapping[str, Any]) -> None:
    """Check the options of a study file, complete as they are.

    Raises:
        UserError: An option has no valid value.
    """
    _check_dict(path, options)
    for part, allowed in _KEYS.items():
        _check_dict(f'{path}: {part}', options[part])
        if not options[part] and part in ('networks', 'methods', 'corruptions'):
            raise UserError(f'{path}: {part} is empty, expected at least one')
        for name, config in options[part].items():
            where = f"{path}: {part}['{name}']"
            if not isinstance(name, str):
                raise UserError(f'{where}: the name is {name!r}, expected a text')
            _check_dict(where, config, allowed)
            if 'given' in config and len(config) > 1:
                raise UserError(
                    f'{where} has given beside {", ".join(sorted(set(config) - {"given"}))}: a given teacher is not '
                    'trained; its config dict says all'
                )
            if 'config' in allowed and 'given' not in config and not isinstance(config.get('config'), str):
                raise UserError(
                    f"{where} names no config: give config='configs/...py'"
                    + (', or given=dict(...), a teacher that is there' if part == 'teachers' else '')
                )
            if part == 'methods':
                _check_method(where, name, config, options)
    for name, config in options['networks'].items():
        own, where = config.get('methods', {}), f"{path}: networks['{name}']['methods']"
        _check_dict(where, own, options['methods'])
        for method in own:
            if not isinstance(own[method], Mapping):
                raise UserError(f"{where}['{method}'] is {own[method]!r}, expected a dict")
            _check_method(f"{where}['{method}']", method, method_on(name, method, options), options)
    for name, condition in options['corruptions'].items():
        _check_data(f"{path}: corruptions['{name}']", {key: condition.get(key) for key in ('label_noise', 'imbalance')})
    _check_data(path, dict(validation=options['validation']))
    if 'part' in (options['validation'] or {}):
        raise UserError(
            f"{path}: validation has no option 'part' here: the runs train on one part and are scored on the other"
        )
    seeds = options['seeds']
    if (
        not isinstance(seeds, (list, tuple))
        or not seeds
        or len(set(map(repr, seeds))) < len(seeds)
        or any(type(seed) is not int or not 0 <= seed < TEACHER_SEED for seed in seeds)
    ):
        raise UserError(
            f'{path}: seeds is {seeds}, expected a list of different whole numbers from 0 to '
            f'{TEACHER_SEED - 1}, as [0, 1, 2]'
        )
    for key, choices in dict(_CHOICES, baseline=(None, *options['methods'])).items():
        if options[key] not in choices:
            raise UserError(
                f'{path}: {key} is {options[key]!r}, expected one of '
                f'{", ".join(repr(x) for x in choices if x is not None)}'
            )


def _check_method(where: str, name: str, config: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Check a method, as the study has it or as it is on one network."""
    _check_dict(where, config, _KEYS['methods'])
    if isinstance(first := config.get('first', {}), str):
        if first not in list(options['methods'])[: list(options['methods']).index(name)]:
            raise UserError(f"{where}: first is '{first}', expected a method above it, or a config dict")
    else:
        _check_dict(f"{where}['first']", first, _KEYS['methods'] - {'first', 'search'})
    own = [network.get('methods') for network in options['networks'].values()]
    learns = [config, *(x.get(name) for x in own if isinstance(x, Mapping))]
    if not any(isinstance(x, Mapping) and x.get('terms') for x in learns):
        for key in ('hook', 'teacher_cache'):
            if config.get(key):
                raise UserError(f'{where} has {key}, which is about a DistillationHook, but no terms: give it some')
    if 'first' in config and 'wrap' in config:
        raise UserError(
            f'{where} has first and wrap, but the weights of one network do not fit several that train together: '
            'wrap the first stage too, or leave wrap out'
        )
    check_search(where, config, options['validation'])


def method_on(network: str, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config dict of a method, with what the network adds to it."""
    config = Config(options['methods'][method])
    config.merge_from_dict(options['networks'][network].get('methods', {}).get(method, {}))
    return config.to_dict()


def _check_dict(where: str, config: Any, allowed: Iterable[str] | None = None) -> None:
    if not isinstance(config, Mapping):
        raise UserError(f'{where} is {config!r}, expected a dict')
    if allowed is not None and (wrong := set(config) - set(allowed)):
        raise UserError(f"{where} has no option '{min(wrong)}'; options are {', '.join(sorted(allowed))}")
    if config.get('teacher_cache', False) not in (False, True):
        raise UserError(f'{where}: teacher_cache is {config["teacher_cache"]!r}, expected one of False, True')
    for expected, (kind, keys) in _KINDS.items():
        for key in keys:
            if key in config and not isinstance(config[key], kind):
                raise UserError(f'{where}: {key} is {config[key]!r}, expected {expected}')
    for term in config.get('terms', []):
        if not isinstance(term, str) and not (isinstance(term, Mapping) and {'name', 'loss'} <= set(term)):
            raise UserError(f'{where}: the term {term!r} is neither a name nor a config dict with name and loss')
    if 'type' not in config.get('wrap', {'type': ''}):
        raise UserError(f"{where}: wrap names no type, as in wrap=dict(type='kd_plugins.MutualLearning')")
    if wrong := set(config.get('hook', {})) - (
        known := set(inspect.signature(DistillationHook).parameters) - {'teacher', 'terms'}
    ):
        raise UserError(f"{where}: hook has no option '{min(wrong)}'; options are {', '.join(sorted(known))}")


def _check_data(where: str, options: Mapping[str, Any]) -> None:
    try:
        check_options(**{key: value for key, value in options.items() if value is not None})
    except UserError as error:
        raise UserError(f'{where}: {error}') from None


def check_spelling(where: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Check that no key which is new to a config is one of its keys, misspelt by one letter.

    Raises:
        UserError: A key is.
    """
    if '_delete_' in given or given.get('type', known.get('type')) != known.get('type'):
        return  # other keys than the config's
    for key, value in given.items():
        if key in known:
            if isinstance(value, Mapping) and isinstance(known[key], Mapping) and key != 'custom_keys':
                check_spelling(f"{where}['{key}']", value, known[key])
        elif near := sorted(x for x in known if one_slip(key, x)):
            raise UserError(f"{where} has '{key}', which is not in the config, but '{near[0]}' is: correct it")


def check_runs(study: Any) -> None:
    """Build every network of a study's runs, and its terms, as the runs would.

    Raises:
        UserError: A run's config cannot train, a term is wrong, or a tap or the study's metric does not exist.
    """
    networks: dict[str, nn.Module] = {}

    def network_of(config: Mapping[str, Any]) -> nn.Module:
        key = repr([config.get(x) for x in ('model', 'data_preprocessor', 'default_scope')])
        if key not in networks:
            with preserved_rng(), MODELS.switch_scope_and_registry(config.get('default_scope')) as registry:
                model = {'data_preprocessor': config.get('data_preprocessor'), **config['model']}
                networks[key] = registry.build(ConfigDict(copy.deepcopy(model)))  # mmdet reads them by attributes
        return networks[key]

    def given(teacher: Mapping[str, Any]) -> nn.Module:
        source, _ = source_and_options(teacher)
        if (key := repr(source)) not in networks:
            check_arguments(f'{study.name}: the given teacher', build_teacher, source)
            with preserved_rng():
                networks[key] = build_teacher(**source)
        return networks[key]

    seen = set()
    for run in study.runs:
        if (kind := (run.network, run.corruption, run.method, run.part)) in seen or run.problem:
            continue
        seen.add(kind)  # mistakes do not depend on the seed
        check_config(Config(run.config), where=f'{study.name}: {run.name}')
        if run.part != 'first':
            _check_metric(study, run)
        student = network_of(run.config)
        for hook in run.config.get('custom_hooks') or []:
            if hook['type'] == 'kd_plugins.DistillationHook':
                trained = [needed for needed in run.needs if needed.part == 'teacher']
                teacher = network_of(trained[0].config) if trained else given(hook['teacher'])
                try:
                    for term in build_terms(hook['terms'], 1):
                        Recorder(student, term.taps_in('student', student), role='student')
                        Recorder(teacher, term.taps_in('teacher', teacher), whole=True, role='teacher')
                except UserError as error:
                    raise UserError(f'{study.name}: {run.name}: {error}') from error


def _check_metric(study: Any, run: Run) -> None:
    """Check that a run is scored, and the metric against the names of mmpretrain's accuracy, if it is the evaluator."""
    given = run.config.get('val_evaluator') or {}
    hooks = [*(run.config.get('custom_hooks') or []), *(run.config.get('default_hooks') or {}).values()]
    if not given and not any(hook and type_name(hook) == 'KNNHook' for hook in hooks):
        raise UserError(
            f"{study.name}: {run.name} is not validated, and has no '{study.options['metric']}': give its config "
            'val_dataloader, val_cfg and val_evaluator, or a KNNHook'
        )
    (evaluator,) = given if isinstance(given, (list, tuple)) and len(given) == 1 else (given,)
    if isinstance(evaluator, Mapping) and evaluator.get('type') == 'Accuracy' and not evaluator.get('thrs'):
        topk = evaluator.get('topk', (1,))
        names = [
            f'{evaluator.get("prefix", "accuracy")}/top{k}'
            for k in (topk if isinstance(topk, (list, tuple)) else (topk,))
        ]
        if study.options['metric'] not in names:
            raise UserError(
                f"{study.name}: there is no metric '{study.options['metric']}': give the study one of "
                f'{", ".join(names)}'
            )
