"""Mistakes a user can mend, told in one line."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """What a user can mend: the message names the thing, what was expected, and the remedy, in one line."""


def _user_message(error: BaseException) -> str | None:
    """Return the one line to print for an error a user can cause; None for a defect of the program."""
    if isinstance(error, UserError):
        # A data loader's worker hands its exception over with the traceback as text: the message is its last line.
        line = str(error).strip().splitlines()[-1]
        return line.removeprefix(f'{UserError.__module__}.{UserError.__qualname__}: ')
    if isinstance(error, OSError):
        return f'{error.filename}: {error.strerror}' if error.filename else str(error)
    cause = error.__cause__ or error.__context__
    return _user_message(cause) if cause is not None else None


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End a command line with ``error: …`` and exit status 1 where the user can mend the cause; 130 on Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        print('stopped by Ctrl-C; go on with --resume', file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        message = _user_message(error)
        if message is None:
            traceback.print_exc()
        else:
            print(f'error: {message}', file=sys.stderr)
        raise SystemExit(1) from None
