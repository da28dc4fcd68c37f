"""Files written whole or not at all, and values in a form that they can hold."""

import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from mmengine.fileio import LocalBackend
from torch import Tensor

from kd_plugins.errors import FULL, MAKE_ROOM, UserError

_OWN_FOLDER = 'name a file in a folder of yours'


@contextmanager
def written_whole(path: str | Path) -> Iterator[str]:
    """Give the name of a file to write in a ``with`` block, which replaces ``path`` once the block has succeeded.

    Raises:
        UserError: The file cannot be written.
    """
    target = os.path.realpath(path)  # a link stays one
    partial = f'{target}.{os.getpid()}.partial'  # another process may write the same file
    try:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, target)
    except OSError as error:
        remedy = MAKE_ROOM if error.errno in FULL else _OWN_FOLDER
        raise UserError(f'{path} cannot be written ({error.strerror}): earlier files are kept; {remedy}') from error
    finally:
        with suppress(OSError):  # there is none, or no such folder
            os.unlink(partial)


def check_writable(option: str, path: Path) -> None:
    """Check, before the work whose result it is to hold, that a file can be made.

    Args:
        option: What names it on the command line.
        path: The file; its folder is made.

    Raises:
        UserError: It cannot.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f'{option} {path} cannot be written ({error.strerror}): {_OWN_FOLDER}') from error


class AtomicBackend(LocalBackend):
    """mmengine's local backend, with atomic writes: one that fails leaves the old files as they were."""

    _to_remove: ClassVar[set[str]] = set()

    def remove(self, filepath: str | Path) -> None:
        """Remove a file after the next write: mmengine's ``max_keep_ckpts`` removes before it writes."""
        self._to_remove.add(str(filepath))

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a temporary file, rename it, and remove the files given to :meth:`remove`.

        Raises:
            UserError: The file cannot be written.
        """
        with written_whole(filepath) as partial, open(partial, 'wb') as file:
            file.write(obj)
            file.flush()
            os.fsync(file.fileno())  # before an older checkpoint goes
        self._to_remove.discard(str(filepath))
        while self._to_remove:
            Path(self._to_remove.pop()).unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: The file cannot be written.
    """
    with written_whole(path) as partial:
        Path(partial).write_text(text, encoding='utf-8')


def plain(value: Any) -> Any:
    """Return a metric's value in a form that JSON can hold: arrays as lists, unknown types as strings."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(x) for x in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
