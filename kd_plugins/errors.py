"""Mistakes a user can mend, told in one line."""

import difflib
import errno
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """What a user can mend: the message names the thing, what was expected, and the remedy, in one line."""


_FULL = '; make room and go on with --resume'
_REMEDIES = {errno.ENOENT: '; check the path in the config', errno.ENOSPC: _FULL, errno.EDQUOT: _FULL,
             errno.EFBIG: _FULL}


def _user_message(error: BaseException) -> str | None:
    """Return the one line to print for an error a user can cause; None for a defect of the program."""
    if isinstance(error, UserError):
        # A data loader's worker hands its exception over with the traceback as text: the message is its end.
        text = str(error)
        if 'Traceback (most recent call last)' in text:
            text = text.rpartition(f'{UserError.__module__}.{UserError.__qualname__}: ')[2]
        return ' '.join(text.split())
    if isinstance(error, OSError):
        told = f'{error.filename}: {error.strerror}' if error.filename else str(error)
        return told + _REMEDIES.get(error.errno, '')
    told = _config_mistake(error)
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return told if told is not None or cause is None else _user_message(cause)


def _config_mistake(error: BaseException) -> str | None:
    """Say which type or option of a config mmengine could not place; None for any other error."""
    text = str(error.args[0]) if error.args else ''
    if isinstance(error, KeyError) and (found := re.match(r'(\S+) is not in the \S+?::(.+?) registry', text)):
        near = _registered_near(*found.groups())
        return (f"type '{found[1]}' is not in the {found[2]} registry; nearest names: {', '.join(near) or 'none'}; "
                'correct it in the config, or name in custom_imports the module that registers it')
    if isinstance(error, TypeError) and error.__traceback__ is not None:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        # From elsewhere it would be a defect of the program.
        if frame.f_code.co_name in ('build_from_cfg', '__init__') and re.search(
                r'\(\) (got an unexpected keyword argument|missing \d+ required)', text):
            return f'{text}; correct the options in the config'
    if isinstance(error, (ValueError, AssertionError)) and text and any(
            frame.f_code.co_name == 'build_from_cfg' for frame, _ in traceback.walk_tb(error.__traceback__)):
        return f'{" ".join(text.split())}; correct the options in the config'
    return None


def _registered_near(name: str, kind: str) -> list[str]:
    from mmengine import registry  # only here, so that this module stays cheap to import

    scopes = {}
    for root in vars(registry).values():
        if isinstance(root, registry.Registry) and root.name == kind:
            for child in (root, *root.children.values()):
                scopes |= dict.fromkeys(child.module_dict, child.scope)
    return [f'{scopes[x]}.{x}' for x in difflib.get_close_matches(name.rpartition('.')[2], scopes, n=3)]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End a command line with ``error: …`` and exit status 1 where the user can mend the cause; 130 on Ctrl-C."""
    logging.raiseExceptions = False  # a log line that finds no room is lost, not followed by a traceback
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
