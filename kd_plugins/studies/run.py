"""One training of a study: its config, its folder, and what it has left there."""

import hashlib
import json
import pprint
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from math import isfinite
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from kd_plugins.config import walk
from kd_plugins.utils.scalars import lines_of

if TYPE_CHECKING:
    from kd_plugins.studies.search import Search

_FILES = ('.pth', '.safetensors', '.py')


@dataclass(eq=False)
class Run:
    """One training.

    Attributes:
        network: Name of the trained network; for a teacher, the teacher's name.
        corruption: Name of the condition of its training data.
        method: Name of the method, ``'teacher'`` for a teacher.
        seed: Seed of the run; the config of a teacher or of a search has a larger one, that of its first student and
            ``TEACHER_SEED`` or ``SEARCH_SEED``.
        folder: Folder of its files.
        config: Its complete config, plain values.
        needs: The runs whose ``student.pth`` it reads.
        part: 'student', 'teacher', 'first' (the first of two stages) or 'search' (with one of the weights to choose
            from).
        problem: Why it cannot run, where the study names something that does not exist.
        search: The search that it is part of; or, of a student, the one that finds its weight.
        given_terms: Its terms as the study has them, once they have the weight that its search has found.
        until: Epoch after which it stops, though its schedules are those of the whole training; None for its end.
    """

    network: str
    corruption: str
    method: str
    seed: int
    folder: Path
    config: dict[str, Any]
    needs: list['Run'] = field(default_factory=list)
    part: str = 'student'
    problem: str = ''
    search: 'Search | None' = None
    given_terms: 'list[dict[str, Any]] | None' = None
    until: int | None = None

    @property
    def name(self) -> str:
        """The run's name in messages."""
        which = f'seed {self.seed}' + ' (first stage)' * (self.part == 'first')
        if self.part == 'search':
            which = f'weight {self.folder.name} to epoch {self.until}'
        return f'{self.network} / {self.corruption} / {self.method} / {which}'

    @property
    def text(self) -> str:
        """The config as a Python file."""
        if self.until is None:
            return _text(self.config)
        stop = dict(type='kd_plugins.StopHook', epoch=self.until)
        return _text(self.config | dict(custom_hooks=[*(self.config.get('custom_hooks') or []), stop]))

    @property
    def digest(self) -> str:
        """A short digest of the config and of the runs that it builds on, wherever it stops."""
        return self._digest_on(run.digest for run in self.needs)

    @property
    def actual_digest(self) -> str:
        """The digest of a run started now: where older runs of what it needs were kept, it builds on these."""
        return self._digest_on(run.record.get('digest') or run.actual_digest for run in self.needs)

    @property
    def record(self) -> dict[str, Any]:
        """The content of ``run.json``; empty before the first start, and where the file is damaged."""
        record = _json(self.folder / 'run.json')
        return record if isinstance(record.get('sessions', []), list) else {}

    @property
    def finished(self) -> bool:
        """Whether it has a whole result, of this config or an older one."""
        return self.metrics is not None and (self.until is None or self.epoch >= self.until)

    @property
    def diverged(self) -> bool:
        """Whether it has ended with a loss that is not finite, as a weight that is too large makes it."""
        return [session.get('status') for session in self.sessions][-1:] == ['diverged']

    @property
    def metrics(self) -> dict[str, Any] | None:
        """The metrics in ``result.json``; None before the end, and where the file is damaged."""
        metrics = _json(self.folder / 'result.json').get('metrics')
        return metrics if isinstance(metrics, dict) else None

    @property
    def epoch(self) -> int:
        """Epoch of the result, 0 before there is one."""
        epoch = (self.metrics or {}).get('epoch')
        return epoch if isinstance(epoch, int) else 0

    @property
    def reached(self) -> int:
        """Epoch from which it would go on: that of its newest checkpoint, or of its result."""
        names = [path.stem.removeprefix('epoch_') for path in self.folder.glob('epoch_*.pth')]
        return max([self.epoch, *(int(name) for name in names if name.isdecimal())])

    @property
    def seconds(self) -> float:
        """Duration of its sessions."""
        return sum(session['seconds'] for session in self.sessions)

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """Status, seconds and versions of its sessions; one without an end was killed with the study."""
        log, found = self.folder / 'log.txt', []
        for session in self.record.get('sessions', []):
            if 'seconds' not in session:
                end = log.stat().st_mtime if log.is_file() else 0.0
                session = session | dict(status='killed', seconds=max(0.0, end - session.get('began', end)))
            found.append({'versions': self.record.get('versions', {})} | session)
        return found

    @property
    def waits(self) -> bool:
        """Whether the weight that it, or a run that it needs, trains with is yet to be found."""
        own = self.part == 'student' and self.search is not None and self.search.best is None
        return own or any(run.waits for run in self.needs)

    def take_weight(self) -> None:
        """Give its terms the weight that its search has found, if it has."""
        if self.search is not None and (weight := self.search.best) is not None:
            self.given_terms = self.search.weigh(self.config, weight, self.given_terms)

    @property
    def changed(self) -> bool:
        """Whether the folder holds a run of another config, as far as this one's is known, or of other files."""
        record = self.record
        return bool(record) and not self.waits and (record.get('digest', self.digest) != self.digest or self.replaced)

    @property
    def files(self) -> dict[str, str]:
        """A digest of each checkpoint and config that its own names, but for those of the runs that it needs."""
        named = {Path(value) for _, value in walk(self.config) if isinstance(value, str) and value.endswith(_FILES)}
        made = {needed.folder for needed in self.needs} | {self.folder}
        found = {}
        for path in sorted(named):
            with suppress(OSError):  # it is none, or a text too long for a name
                if path.parent not in made and path.is_file():
                    found[str(path)] = _digest_of(path)
        return found

    @property
    def replaced(self) -> bool:
        """Whether a file that it, or a run that it needs, was made from has another content now."""
        now = self.files
        own = any(now.get(path, digest) != digest for path, digest in self.record.get('files', {}).items())
        return own or any(run.replaced for run in self.needs)

    @property
    def scalars(self) -> list[dict[str, Any]]:
        """The numbers in the lines of its ``scalars.json``, its sessions in order."""
        return [line for path in sorted(self.folder.glob('*/vis_data/scalars.json')) for line in lines_of(path)]

    def _digest_on(self, needs: Iterable[str]) -> str:
        return hashlib.sha256((_text(self.config) + ''.join(needs)).encode()).hexdigest()[:16]


def _digest_of(path: Path) -> str:
    """Return a digest of a file, which is read once for each state of it."""
    state = path.stat()
    return _read_digest(path, state.st_mtime_ns, state.st_size)


@lru_cache(256)
def _read_digest(path: Path, *state: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


class _Printer(pprint.PrettyPrinter):
    """Writes values as Python reads them again: infinity, NumPy's numbers and paths have other names."""

    def format(self, value: object, context: dict[int, int], maxlevels: int, level: int) -> tuple[str, bool, bool]:
        if getattr(value, 'shape', None) == ():
            value = value.item()  # type: ignore[attr-defined]  # a number of NumPy or torch
        elif isinstance(value, PurePath):
            value = str(value)
        if isinstance(value, float) and not isfinite(value):
            return f"float('{value}')", True, False
        return super().format(value, context, maxlevels, level)


def _text(config: dict[str, Any]) -> str:
    printer = _Printer(width=119, sort_dicts=False)
    return ''.join(f'{key} = {printer.pformat(value)}\n' for key, value in config.items())


def _json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; empty where it is missing or damaged."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
