"""Signals that end a command as Ctrl-C does."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

_interrupting: set[signal.Signals] = set()


def _as_usual() -> None:
    for number in _interrupting:
        signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_as_usual)


@contextmanager
def interrupted_by(*signals: signal.Signals) -> Iterator[None]:
    """Raise KeyboardInterrupt at these signals while the block runs, so that it cleans up.

    A signal that is ignored stays so. A process that is forked inside is ended by them, as a pool expects that ends its
    workers by SIGTERM: one that raised instead, or was about to, could keep a lock of the pool, and its parent would
    wait for ever.
    """
    before, outer = {number: signal.getsignal(number) for number in signals}, set(_interrupting)
    for number, handler in before.items():
        if handler not in (signal.SIG_IGN, None):  # as SIGHUP under nohup
            _interrupting.add(number)
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        _interrupting.intersection_update(outer)
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
