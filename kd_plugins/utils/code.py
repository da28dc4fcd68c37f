"""The code of classes, as part of the key of what they have computed."""

import hashlib
import sys
from collections.abc import Iterable, Iterator
from inspect import unwrap
from pathlib import Path
from types import CodeType, FunctionType

_OPENMMLAB = {'mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmseg'}
_LIBRARIES = {'torch', 'torchvision', 'timm', 'transformers', 'kd_plugins'} | _OPENMMLAB


def sources(kinds: Iterable[type]) -> Iterator[str]:
    """Yield hashes of the files that define some classes and their bases, where these are of none of the libraries."""
    for kind in sorted({base for derived in kinds for base in derived.__mro__}, key=str):
        if kind.__module__.partition('.')[0] in _LIBRARIES | sys.stdlib_module_names:
            continue
        functions = [getattr(x, '__func__', x) for x in vars(kind).values()]  # static and class methods, too
        codes = [getattr(unwrap(x), '__code__', x.__code__) for x in functions if isinstance(x, FunctionType)]
        # A class without methods has the file of its module; a module that was loaded by its path is not among these.
        names = {str(getattr(sys.modules.get(kind.__module__), '__file__', '')), *(code.co_filename for code in codes)}
        texts = [Path(name).read_bytes() for name in names if Path(name).is_file()]
        texts = texts or [_text(code).encode() for code in codes]
        for digest in sorted(hashlib.sha256(text).hexdigest() for text in texts):
            yield f'{kind.__qualname__} {digest}'


def _text(value: object) -> str:
    """Return a function's code, or one of its constants, in words that another process has too: without addresses."""
    if isinstance(value, CodeType):
        return f'{value.co_code!r} {value.co_names} {[_text(x) for x in value.co_consts]}'
    return str(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)
