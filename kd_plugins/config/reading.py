"""Reading configs: which file a name means, what a method's terms are, and where the paths in a config lie."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from kd_plugins.config.values import READ
from kd_plugins.errors import UserError, user_named
from kd_plugins.unpickling import guard_files
from kd_plugins.utils.names import brief, nearest, one_slip
from kd_plugins.utils.packages import packaged_config

PACKAGE = Path(__file__).parents[1] / '.mim'  # where configs/ and tools/ are, as in OpenMMLab's packages


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
    if os.environ.get('METHOD') == '':  # which mmengine takes for a variable without a default
        del os.environ['METHOD']
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
    for option, value in options.items():
        try:
            key, value = _replacing(config, option, value)
            config.merge_from_dict({key: value})
        except Exception as error:
            raise UserError(
                f'--cfg-options {option}: not possible in {path}: {type(error).__name__}: {error}'
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
            f"{path}: variant is {brief(variant)}, expected a text, the last part of the run's folder: rename it if "
            'it is a name of your own'
        )
    try:
        given = config.get('work_dir')
        for _, node in [('', config), *walk(config)]:
            for key, text in () if isinstance(node, tuple) else items_of(node):
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


def _replacing(config: Config, option: str, value: Any) -> tuple[str, Any]:
    """Return an option's key and value such that a dict replaces a number, or a None on the way: neither merges."""
    known, parts = dict(walk(config)), option.split('.')
    for count in range(1, len(parts)):
        if known.get('.'.join(parts[:count]), 0) is None:
            for part in reversed(parts[count:]):
                value = {part: value}
            option = '.'.join(parts[:count])
            break
    if isinstance(value, dict) and not isinstance(known.get(option, {}), (dict, list, tuple)):
        value = dict(value, _delete_=True)
    return option, value


def _check_options(config: Config, options: Iterable[str]) -> None:
    """Refuse an option that nothing would read: a slip, or a variable that the file has copied when it was read."""
    for option in options:
        key, _, below = option.partition('.')
        if key in READ or key == 'variant':
            continue
        if key not in config:
            if similar := [x for x in {*config} | READ if one_slip(key, x)]:
                raise UserError(f"--cfg-options {option}: nothing reads '{key}'; did you mean '{min(similar)}'?")
            if places := [path for path, _ in read_values(config) if path.endswith(f'.{key}')]:
                raise UserError(f"--cfg-options {option}: nothing reads '{key}'; did you mean '{places[0]}'?")
            continue
        value = config[key]
        for path, copied in read_values(config):
            whole = isinstance(value, (list, Mapping)) and len(value) > 0  # a name is not needed to tell it
            same = (whole or path.endswith(f'.{key}')) and copied == value
            if whole and isinstance(value, Mapping) and isinstance(copied, Mapping):
                same |= all(copied.get(x) == y for x, y in value.items())
            if same:
                raise UserError(
                    f"--cfg-options {option}: '{key}' was copied when the file was read, and is read no more: give "
                    f'{path}{below and f".{below}"}'
                )


def read_values(config: Config) -> Iterator[tuple[str, Any]]:
    """Yield the values of a config that a run reads, with their dotted paths."""
    for path, value in walk(config):
        if path.partition('.')[0] in READ:
            yield path, value


def without_workers(loader: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a data loader that loads in this process, without the options of workers alone."""
    kept = {key: value for key, value in loader.items() if key not in ('prefetch_factor', 'timeout')}
    return kept | dict(num_workers=0, persistent_workers=False)


def walk(node: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """Yield every value below a config or a part of one, from the outermost in, with its dotted path."""
    for key, value in items_of(node):
        below = f'{path}.{key}' if path else str(key)
        yield below, value
        yield from walk(value, below)


def items_of(node: Any) -> Iterable[tuple[Any, Any]]:
    """Return what is directly below a part of a config, with its keys or indices; nothing below a single value."""
    if isinstance(node, (Mapping, Config)):
        return node.items()
    return enumerate(node) if isinstance(node, (list, tuple)) else ()
