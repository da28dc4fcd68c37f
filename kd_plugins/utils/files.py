"""Files written whole or not at all."""

import os
from pathlib import Path
from typing import ClassVar

from mmengine.fileio import LocalBackend

from kd_plugins.errors import MAKE_ROOM, UserError


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
        partial = f'{filepath}.partial'
        try:
            super().put(obj, partial)
            os.replace(partial, filepath)
        except OSError as error:
            Path(partial).unlink(missing_ok=True)
            raise UserError(
                f'{filepath} cannot be written ({error.strerror}): earlier files are kept; {MAKE_ROOM}'
            ) from error
        self._to_remove.discard(str(filepath))
        while self._to_remove:
            Path(self._to_remove.pop()).unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: The file cannot be written.
    """
    AtomicBackend().put(text.encode(), str(path))
