"""What a study consists of: every run with its folder, its complete config and what it builds on."""

import copy
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mmengine.config import Config

from kd_plugins.config import load_config, located
from kd_plugins.errors import UserError
from kd_plugins.studies.checks import TEACHER_SEED, check_spelling, check_study, method_on
from kd_plugins.studies.data import corrupt, data_options, filled, hide_test_set, hold_out
from kd_plugins.studies.run import Run
from kd_plugins.studies.search import SEARCH_SEED, Search, rounds_of, searched_terms

# Options of a study and their values where it states none.
DEFAULTS: dict[str, Any] = dict(
    title=None,
    root=None,
    teachers={},
    corruptions={'clean': {}},
    seeds=[0],
    replace=[],
    common={},
    teacher_common={},
    teacher_data='clean',
    teacher_seeds='one',
    teacher_cache=False,
    terms_from='configs/_base_/methods.py',
    metric='accuracy/top1',
    fraction=False,
    average='mean',
    error=False,
    references=[],
    notes='',
    columns=None,
    baseline=None,
    validation=None,
)


@dataclass
class Study:
    """A study file, expanded to its runs.

    Attributes:
        name: Name of the file, without its ending.
        root: Folder of its runs and tables.
        options: Its keys, with their defaults.
        runs: All runs; each follows those that it needs.
    """

    name: str
    root: Path
    options: dict[str, Any]
    runs: list[Run]

    @property
    def students(self) -> list[Run]:
        """The runs in the table."""
        return [run for run in self.runs if run.part == 'student']

    @property
    def searches(self) -> list[Search]:
        """The searches for weights."""
        return list(dict.fromkeys(run.search for run in self.runs if run.search is not None))

    @property
    def teachers(self) -> list[Run]:
        """The teachers' runs."""
        return [run for run in self.runs if run.part == 'teacher']

    def only(self, patterns: Iterable[str]) -> list[Run]:
        """Return the runs whose folder below the root matches a pattern, and what they need."""
        wanted = set()
        for pattern in patterns:
            chosen = {
                run for run in self.students if fnmatchcase(run.folder.relative_to(self.root).as_posix(), pattern)
            }
            if not chosen:
                example = self.students[0].folder.relative_to(self.root).as_posix()
                raise UserError(
                    f'--only: no run matches {pattern}; runs are named as {example}, and * stands for any part of that'
                )
            wanted |= chosen
        for run in reversed(self.runs):
            if run in wanted:
                wanted.update(run.needs, run.search.runs.values() if run.search else ())
        return [run for run in self.runs if run in wanted]


def slug(name: str) -> str:
    """Return a name as that of a folder."""
    return re.sub(r'([^\w.=+]|_)+', '-', name.lower()).strip('-')


def load_study(path: str, root: str | None = None) -> Study:
    """Read a study file and expand it to its runs.

    Raises:
        UserError: The file is missing, names something that does not exist, or has an option of no valid value.
    """
    config = load_config(path)
    known = {'networks', 'methods', *DEFAULTS}
    for key in config.keys() - known - {'work_dir'}:  # a file may define names of its own
        if near := difflib.get_close_matches(key, known, 1, 0.8):
            raise UserError(
                f"{path}: a study has no option '{key}'; the nearest is '{near[0]}': correct it, or choose "
                'a less similar name'
            )
    options = {key: config.get(key, default) for key, default in DEFAULTS.items()}
    options['terms_from'] = located(options['terms_from'], path)
    for key in ('networks', 'methods'):
        if not config.get(key):
            raise UserError(f'{path}: a study needs {key}, as in configs/studies/quick.py')
        options[key] = config[key]
    options = Config(options).to_dict()
    check_study(path, options)
    for part in ('networks', 'teachers', 'methods', 'corruptions'):
        names = [slug(name) for name in options[part]]
        if len(set(names)) < len(names) or not all(names):
            raise UserError(
                f'{path}: the names in {part} must differ in more than punctuation and capitals, since '
                f'they name folders: {", ".join(names)}'
            )
    stem = Path(path).stem
    folder = Path(root or options['root'] or Path('work_dirs', 'studies', stem))
    return Study(stem, folder, options, _Plan(path, folder, options).runs())


class _Plan:
    """Makes the runs of a study."""

    def __init__(self, path: str, root: Path, options: dict[str, Any]) -> None:
        self._path, self._root, self._options = path, root, options
        self._read: dict[str, dict[str, Any]] = {}
        self._teachers: dict[Path, Run] = {}
        self._split: dict[Path, bool] = {}
        self._students: dict[tuple[str, str, str, int], Run] = {}
        self._searches: dict[tuple[str, str, str], Search] = {}

    def runs(self) -> list[Run]:
        """Return all runs, the first seed of every method before the second of any."""
        students: dict[Run, None] = {}
        for seed in self._options['seeds']:
            for corruption in self._options['corruptions']:
                for network in self._options['networks']:
                    for method in self._options['methods']:
                        run = self._student(network, corruption, method, seed)
                        firsts = [needed for needed in run.needs if needed.part == 'first']
                        searched = run.search.runs.values() if run.search else []
                        students |= dict.fromkeys([*firsts, *searched, run])
        return [*self._teachers.values(), *students]

    def _base(self, source: Mapping[str, Any], corruption: str, *parts: str) -> Config:
        config = Config(self._file(source['config']))
        for piece in [*source.get('replace', []), *self._options['replace']]:
            for key, value in self._file(piece).items():
                config[key] = value
        condition = self._options['corruptions'].get(corruption, {})
        for options in (self._options, condition):
            for part in parts:
                self._merge(config, options.get(part, {}), part)
        self._merge(config, source.get('overrides', {}), 'overrides')
        return config

    def _merge(self, config: Config, overrides: Mapping[str, Any], name: str) -> None:
        check_spelling(f'{self._path}: {name}', overrides, config)
        config.merge_from_dict(overrides)

    def _file(self, path: str) -> dict[str, Any]:
        if path not in self._read:
            self._read[path] = _plain(load_config(path))
            for key in ('work_dir', 'variant', 'compare', 'teacher', 'terms'):  # of a file that is trained by itself
                self._read[path].pop(key, None)
        return copy.deepcopy(self._read[path])

    def _complete(
        self,
        config: Config,
        folder: Path,
        corruption: str,
        seed: int,
        later: int = 0,
        searching: bool = False,
    ) -> dict[str, Any]:
        plain = filled(_plain(config), seed)
        if not plain.get('train_dataloader'):
            raise UserError(f'{self._path}: the config that is to be trained in {folder} has no train_dataloader')
        data = data_options(self._options['corruptions'].get(corruption, {}))
        if validation := self._options['validation']:
            if searching:
                hide_test_set(plain, validation)
            else:
                hold_out(plain, validation, self._options['metric'])
            data['validation'] = dict(validation)
        corrupt(plain['train_dataloader'], data)
        plain['randomness'] = dict(plain.get('randomness') or {}, seed=later + seed)
        plain['work_dir'] = folder.as_posix()
        return plain

    def _teacher(self, name: str, corruption: str, seed: int) -> Run:
        if name not in self._options['teachers']:
            raise UserError(
                f"{self._path}: there is no teacher '{name}'; the teachers are {', '.join(self._options['teachers'])}"
            )
        conditions = self._options['corruptions']
        if self._options['teacher_data'] == 'clean' and data_options(conditions[corruption]):
            # A study may have corrupted data only.
            corruption = next((name for name, condition in conditions.items() if not data_options(condition)), 'clean')
        seed = self._options['seeds'][0] if self._options['teacher_seeds'] == 'one' else seed
        folder = self._root / 'teachers' / slug(name) / slug(corruption) / f'seed{seed}'
        if folder not in self._teachers:
            config = self._base(self._options['teachers'][name], corruption, 'common', 'teacher_common')
            self._split[folder] = _has_splits(config)
            config = self._complete(config, folder, corruption, seed, TEACHER_SEED)
            self._teachers[folder] = Run(name, corruption, 'teacher', seed, folder, config, part='teacher')
        return self._teachers[folder]

    def _student(self, network: str, corruption: str, method: str, seed: int) -> Run:
        options = method_on(network, method, self._options)
        folder = self._root / slug(network) / slug(corruption) / slug(method) / f'seed{seed}'
        run = self._stage(network, corruption, method, options, seed, folder)
        self._students[network, corruption, method, seed] = run
        first = None
        if 'first' in options:
            if isinstance(options['first'], str):
                first = self._students[network, corruption, options['first'], seed]
            else:
                first = self._stage(network, corruption, method, options['first'], seed, folder / 'first')
                first.part = 'first'
            _start_from(run, first)
        if 'search' in options and not run.problem:
            key = network, corruption, method
            if key not in self._searches:
                self._searches[key] = self._search(*key, options, run, first)
            run.search = self._searches[key]
            run.take_weight()
        return run

    def _search(
        self,
        network: str,
        corruption: str,
        method: str,
        options: Mapping[str, Any],
        student: Run,
        first: Run | None,
    ) -> Search:
        where, given = f"{self._path}: methods['{method}']", options['search']
        names = searched_terms(where, student.config['custom_hooks'][-1]['terms'], given.get('terms'))
        whole = (student.config.get('train_cfg') or {}).get('max_epochs')
        epochs = rounds_of(where, len(given['weight']), given.get('epochs'), whole)
        search = Search(self._options['metric'], epochs, list(names), max(names.values()))
        for weight in given['weight']:
            folder = student.folder.parent / 'search' / f'{weight:g}'
            run = self._stage(network, corruption, method, options, student.seed, folder, searching=True)
            if first is not None:
                _start_from(run, first)
            search.weigh(run.config, weight)
            # A round may end between two of the training's own checkpoints.
            hooks = run.config.get('default_hooks') or {}
            checkpoint = (hooks.get('checkpoint') or dict(type='CheckpointHook')) | dict(interval=1, by_epoch=True)
            run.config['default_hooks'] = dict(hooks, checkpoint=checkpoint)
            run.part, run.search, run.until = 'search', search, epochs[0]
            search.runs[weight] = run
        search.advance()  # which one has come how far
        return search

    def _stage(
        self,
        network: str,
        corruption: str,
        method: str,
        options: Mapping[str, Any],
        seed: int,
        folder: Path,
        searching: bool = False,
    ) -> Run:
        source = self._options['networks'][network]
        config = self._base(source, corruption, 'common')
        self._merge(config, options.get('overrides', {}), 'overrides')
        split = _has_splits(config)
        config = self._complete(config, folder, corruption, seed, SEARCH_SEED if searching else 0, searching)
        needs, problem = [], ''
        try:
            terms = self._terms_of(options.get('terms', []), source.get('terms_from', self._options['terms_from']))
        except UserError as error:
            if 'terms_from' not in source:
                raise
            terms, problem = [], str(error)  # the other methods can run
        if terms:
            if not source.get('teacher'):
                raise UserError(f"{self._path}: method '{method}' needs a teacher, but network '{network}' names none")
            if (teacher := self._options['teachers'].get(source['teacher'], {}).get('given')) is not None:
                home = self._root / 'teachers' / slug(source['teacher'])
            else:
                needs = [self._teacher(source['teacher'], corruption, seed)]
                home, teacher = needs[0].folder, _required(needs[0])
                if split != self._split[home] or (split and self._options['teacher_seeds'] == 'one'):
                    raise UserError(
                        f"{self._path}: '{{seed}}' is in the config of network '{network}' or of its teacher "
                        f"'{source['teacher']}', which would then learn from other data than the network: put it "
                        "in both, with teacher_seeds='each'"
                    )
                config['requires'] = [*(config.get('requires') or []), teacher]
            if options.get('teacher_cache', self._options['teacher_cache']):
                teacher = dict(teacher, cache=(home / 'answers').as_posix())
            hook = dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms, **options.get('hook', {}))
            config['custom_hooks'] = [*(config.get('custom_hooks') or []), hook]
        if 'wrap' in options:
            config['model'] = dict(options['wrap'], student=config['model'])
        config = filled(config, seed)  # the terms, the given teacher and the wrapper, too
        return Run(network, corruption, method, seed, folder, config, needs, problem=problem)

    def _terms_of(self, names: Iterable[str | dict[str, Any]], path: str) -> list[dict[str, Any]]:
        found = []
        for name in names:
            if isinstance(name, Mapping):
                found.append(name)
                continue
            known = self._file(path).get('methods')
            if not isinstance(known, Mapping):
                raise UserError(
                    f'{path} has no methods, from which terms are taken: let terms_from name a file such as '
                    'configs/_base_/methods.py'
                )
            if name not in known:
                raise UserError(f"{path} has no terms '{name}': it has {', '.join(known)}")
            found += known[name]
        return found


def _plain(config: Config) -> dict[str, Any]:
    return config.to_dict()  # classes, which a config by read_base has, as their names


def _required(run: Run) -> dict[str, str]:
    return dict(config=(run.folder / 'config.py').as_posix(), checkpoint=(run.folder / 'student.pth').as_posix())


def _start_from(run: Run, first: Run) -> None:
    """Let a run start from the weights of another."""
    run.needs.append(first)
    run.config['load_from'] = (first.folder / 'student.pth').as_posix()
    run.config['requires'] = [*(run.config.get('requires') or []), _required(first)]


def _has_splits(config: Config) -> bool:
    return filled(plain := _plain(config), 0) != plain
