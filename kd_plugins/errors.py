"""Mistakes a user can mend, told in one line."""

import difflib
import errno
import logging
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class UserError(ValueError):
    """What a user can mend: the message names the thing, what was expected, and the remedy, in one line."""


_FULL = '; make room and go on with --resume'
_REMEDIES = {errno.ENOENT: '; check the path in the config', errno.ENOSPC: _FULL, errno.EDQUOT: _FULL,
             errno.EFBIG: _FULL}
# Packages whose code works by the config: what it raises is about the config or the data.
_STOCK = ('mmengine', 'mmcv', 'mmdet', 'mmpretrain')
_LIBRARY = {Path(sysconfig.get_path(name)) for name in ('stdlib', 'platstdlib', 'purelib', 'platlib')}
_named: set[str] = set()


def user_named(texts: Iterable[str]) -> None:
    """Note what a config says: an operating system's error about a path among it is the user's to mend."""
    _named.update(texts)


def _is_named(path: object) -> bool:
    """Whether the user named the path or a folder above it, in a config or on the command line."""
    if not isinstance(path, (str, bytes)) or not path:
        return False
    given = Path(path.decode(errors='surrogateescape') if isinstance(path, bytes) else path).absolute()
    named = {Path(text.rpartition('=')[2]).absolute() for text in (*_named, *sys.argv[1:]) if text and '\0' not in text}
    return not named.isdisjoint((given, *given.parents))


def _user_message(error: BaseException) -> str | None:
    """Return the one line to print for an error a user can cause; None for a defect of the program."""
    text = ' '.join(str(error).split())
    if isinstance(error, UserError):
        # A data loader's worker hands its exception over with the traceback as text: the message is its end.
        return text.rpartition(f'{UserError.__module__}.{UserError.__qualname__}: ')[2]
    if isinstance(error, OSError) and (error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
                                       or _is_named(error.filename)):
        told = f'{error.filename}: {error.strerror}' if error.filename else text
        return told + _REMEDIES.get(error.errno, '')
    if isinstance(error, RuntimeError) and 'gloo/transport' in text:
        return 'another process of this run has ended, see its error: start all of them again, with --resume'
    if not isinstance(error, OSError) or not error.filename:
        told = _refusal(error)
        if told is not None:
            return told
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None if cause is None else _user_message(cause)


def _refusal(error: BaseException) -> str | None:
    """Return what stock code says of the part of the config that it built or ran; None where other code raised."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    if 'Original Traceback' in text:  # a data loader's worker, whose exception comes as text
        files += re.findall(r'File "(.+?)", line', text)
        text = text.strip().splitlines()[-1]
    else:
        text = f'{type(error).__name__}: {text}'
    if not _is_stock(files):
        return None
    if found := re.match(r"KeyError: (\S+) is not in the \S+?::(.+?) registry", text):
        return (f"type '{found[1]}' is not in the {found[2]} registry; nearest names: "
                f"{', '.join(_registered_near(*found.groups())) or 'none'}; correct it in the config, or name in "
                'custom_imports the module that registers it')
    part = _part_at_work(error)
    return f'{part}: {" ".join(text.split())[:300]}; correct the options in the config, or the data'.removeprefix(': ')


def _is_stock(files: list[str]) -> bool:
    """Whether the innermost file that is of no general library is one of OpenMMLab's."""
    for file in map(Path, reversed(files)):
        if any(name in file.parts for name in _STOCK) and 'site-packages' in file.parts:
            return True
        if not any(file.is_relative_to(folder) for folder in _LIBRARY) and not str(file).startswith('<'):
            return False
    return False


def _registries() -> Iterator[tuple[str, str, dict[str, Any]]]:
    from mmengine import registry  # only here, so that this module stays cheap to import

    for root in vars(registry).values():
        if isinstance(root, registry.Registry):
            for child in (root, *root.children.values()):
                yield root.name, child.scope, child.module_dict


def _registered_near(name: str, kind: str) -> list[str]:
    scopes = {key: scope for root, scope, modules in _registries() if root == kind for key in modules}
    return [f'{scopes[x]}.{x}' for x in difflib.get_close_matches(name.rpartition('.')[2], scopes, n=3)]


def _part_at_work(error: BaseException) -> str:
    """Return the innermost part of a config that was built or ran: its class, and a module's place in the model."""
    classes = {class_ for _, _, modules in _registries() for class_ in modules.values()}
    part, model = '', None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        names = frame.f_locals
        owner = names.get('self')
        if hasattr(owner, 'named_modules'):
            model = model or owner
            place = next((name for name, module in model.named_modules() if module is owner), '')
            part = f'{place} ({type(owner).__name__})' if place else type(owner).__name__
        elif type(owner) in classes:
            part = type(owner).__name__
        elif frame.f_code.co_name == 'build_from_cfg' and hasattr(built := names.get('obj_cls'), '__name__'):
            part = built.__name__
    return part


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End a command line with ``error: …`` and exit status 1 where the user can mend the cause; 130 on Ctrl-C."""
    logging.raiseExceptions = False  # a log line that finds no room is lost, not followed by a traceback
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors='backslashreplace')  # a locale may lack a letter of a message
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
