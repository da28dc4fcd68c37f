"""Signals in the process that asks for them, and in its forks."""

import os
import signal
import time

import pytest

from kd_plugins.utils.signals import interrupted_by


def test_a_fork_is_ended_by_the_signal_that_interrupts_its_parent():
    """At once, by the system: a handler of Python's may run too late, in a lock that the parent waits for."""
    with interrupted_by(signal.SIGTERM):
        with interrupted_by(signal.SIGTERM):
            pass  # leaves the outer one as it was
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        if not (pid := os.fork()):
            os._exit(0 if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL else 3)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _killed() -> None:
    with interrupted_by(signal.SIGTERM, signal.SIGHUP):
        for number in (signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)
        time.sleep(10)


def test_handlers_of_before_come_back_and_ignored_signals_stay_ignored():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with pytest.raises(KeyboardInterrupt):
            _killed()
        assert [signal.getsignal(number) for number in before] == [signal.SIG_DFL, signal.SIG_IGN]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
