"""Files written whole or not at all."""

import os
from pathlib import Path
from typing import ClassVar

from mmengine.fileio import LocalBackend

from kd_plugins.errors import MAKE_ROOM, UserError


class AtomicBackend(LocalBackend):
    """mmengine's local storage, but a write that fails leaves the old files as they were."""

    _condemned: ClassVar[set[str]] = set()

    def remove(self, filepath: str | Path) -> None:
        """Remove a file when the next one is written: mmengine's ``max_keep_ckpts`` removes before it writes."""
        self._condemned.add(str(filepath))

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes beside the file, put them in its place, and remove what was to go."""
        partial = f'{filepath}.partial'
        try:
            super().put(obj, partial)
            os.replace(partial, filepath)
        except OSError as error:
            Path(partial).unlink(missing_ok=True)
            raise UserError(
                f'{filepath} cannot be written ({error.strerror}): what was written before is kept; {MAKE_ROOM}'
            ) from error
        self._condemned.discard(str(filepath))
        while self._condemned:
            Path(self._condemned.pop()).unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: It cannot be written.
    """
    AtomicBackend().put(text.encode(), str(path))
