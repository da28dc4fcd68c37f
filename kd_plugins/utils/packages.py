"""Files of installed packages."""

from importlib.util import find_spec
from pathlib import Path

from kd_plugins.errors import UserError
from kd_plugins.utils.names import nearest

# Modules that only some configs need, by the name that pip knows.
_OPTIONAL = {'mmdet': 'onedl-mmdetection', 'mmseg': 'onedl-mmsegmentation'}


def packaged_config(name: str) -> Path | None:
    """Return the file of a config that is named ``package::path``; None for another name.

    Raises:
        UserError: The package is not installed, or has no such config.
    """
    package, separator, below = name.partition('::')
    if not separator:
        return None
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.origin:
        remedy = f': pip install {_OPTIONAL[package]}' if package in _OPTIONAL else ''
        raise UserError(f"config {name} does not exist: no package '{package}' is installed{remedy}")
    configs = Path(spec.origin).parent / '.mim' / 'configs'
    path = configs / below
    if not path.is_file():
        known = sorted(file.relative_to(configs).as_posix() for file in configs.rglob('*.py'))
        raise UserError(f'config {name} does not exist; {nearest(below, known)}')
    return path
