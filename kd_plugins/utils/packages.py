"""Files of installed packages."""

from importlib.util import find_spec
from pathlib import Path


def packaged_config(name: str) -> Path | None:
    """Return the file of a config that is named ``package::path``, or None for another name or a missing file."""
    package, separator, below = name.partition('::')
    spec = find_spec(package) if separator and package.isidentifier() else None
    path = Path(spec.origin).parent / '.mim' / 'configs' / below if spec and spec.origin else None
    return path if path and path.is_file() else None
