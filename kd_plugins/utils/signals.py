"""Signals that end a command as Ctrl-C does."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupted_by(*signals: signal.Signals) -> Iterator[None]:
    """Raise KeyboardInterrupt at these signals while the block runs, so that it cleans up.

    A signal that is ignored stays so. A process that is forked inside is ended, as a pool expects that ends its workers
    by SIGTERM: one that raised instead could keep a lock of the pool, and its parent would wait for ever.
    """
    own = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in signals}
    for number, handler in before.items():
        if handler not in (signal.SIG_IGN, None):  # as SIGHUP under nohup
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
