"""Errors of the user, reported in one line."""

import errno
import io
import logging
import os
import select
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kd_plugins.tracebacks import config_message, of_hook


class UserError(ValueError):
    """An error that a user can correct: one line that names the thing, what was expected, and the remedy."""


MAKE_ROOM = 'make room and give the command again, train.py with --resume'
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REMEDIES = {
    errno.ENOENT: '; check the path in the config',
    **dict.fromkeys(FULL, f'; {MAKE_ROOM}'),
}
_named: set[str] = set()


def user_named(texts: Iterable[str]) -> None:
    """Note the texts of a config: an operating system's error about a path among them is the user's."""
    _named.update(texts)


def _is_named(path: object) -> bool:
    """Whether the user named the path, or one above or below it, in a config or on the command line."""
    if not isinstance(path, (str, bytes)) or not path:
        return False
    given = Path(path.decode(errors='surrogateescape') if isinstance(path, bytes) else path).absolute()
    texts = {Path(text.rpartition('=')[2]) for text in (*_named, *sys.argv[1:]) if text and '\0' not in text}
    # A package may look for a relative path in a folder of its own, as mmdet does for LD's teacher.
    if any(len(x.parts) > 1 and given.parts[-len(x.parts) :] == x.parts for x in texts):
        return True
    named = {x.absolute() for x in texts}
    # An error can also be about a folder above a named path, which has to be made.
    return not named.isdisjoint((given, *given.parents)) or any(given in path.parents for path in named)


def _user_message(error: BaseException) -> str | None:
    """Return the line to print for an error that a user can cause; None for a defect of the program."""
    text = ' '.join(str(error).split())
    if isinstance(error, UserError):
        # The exception of a data loader's worker has its traceback as text, which ends in the message.
        return text.rpartition(f'{UserError.__module__}.{UserError.__qualname__}: ')[2]
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object!r:.80} has letters that this locale's {error.encoding} lacks: set PYTHONUTF8=1"
    if isinstance(error, OSError) and (error.errno in FULL or _is_named(error.filename)):
        message = f'{error.filename}: {error.strerror}' if error.filename else text
        return message + _REMEDIES.get(error.errno or 0, '')
    if type(error).__name__ == 'OutOfMemoryError':  # of torch, which this module does not import
        return f'{text.partition(". ")[0]}: use a smaller batch_size, smaller images or --amp'
    if isinstance(error, RuntimeError) and 'gloo/transport' in text:
        return 'another process of this run has ended, see its error: start all of them again, with --resume'
    if not isinstance(error, OSError) or not error.filename:
        about_config = config_message(error)
        if about_config is not None:
            return about_config
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None if cause is None else _user_message(cause)


def _nobody_reads() -> bool:
    """Return whether the reader of the standard output has ended, as ``| head`` does; if so, drop what is left."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if not output.poll(0):  # poll reports errors without being asked to
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


@contextmanager
def one_line_errors(stopped: str = 'stopped by Ctrl-C') -> Iterator[None]:
    """End a command line with ``error: …`` and exit status 1 where the user can correct the cause.

    Args:
        stopped: Message after Ctrl-C, where the exit status is 130.
    """
    logging.raiseExceptions = False  # on a full disk a log line is lost, without a traceback of its own
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's is not, and takes every letter
            stream.reconfigure(errors='backslashreplace')  # a locale may lack a letter of a message
    try:
        yield
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            raise SystemExit(0) from None
        raised = of_hook(error)
        message = _user_message(raised)
        if message is None:
            traceback.print_exception(raised)
        else:
            print(f'error: {message}', file=sys.stderr)
        raise SystemExit(1) from None
