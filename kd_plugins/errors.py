"""Mistakes a user can mend, told in one line."""

import difflib
import errno
import io
import logging
import os
import re
import select
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any


class UserError(ValueError):
    """What a user can mend: the message names the thing, what was expected, and the remedy, in one line."""


MAKE_ROOM = 'make room and give the command again, train.py with --resume'
_REMEDIES = {
    errno.ENOENT: '; check the path in the config',
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), f'; {MAKE_ROOM}'),
}
# Packages whose code works by the config: what it raises is about the config or the data.
_STOCK = ('mmengine', 'mmcv', 'mmdet', 'mmpretrain')
_LIBRARY = {Path(sysconfig.get_path(name)) for name in ('stdlib', 'platstdlib', 'purelib', 'platlib')}
_named: set[str] = set()


def user_named(texts: Iterable[str]) -> None:
    """Note what a config says: an operating system's error about a path among it is the user's to mend."""
    _named.update(texts)


def _is_named(path: object) -> bool:
    """Whether the user named the path, or one above or below it, in a config or on the command line."""
    if not isinstance(path, (str, bytes)) or not path:
        return False
    given = Path(path.decode(errors='surrogateescape') if isinstance(path, bytes) else path).absolute()
    named = {Path(text.rpartition('=')[2]).absolute() for text in (*_named, *sys.argv[1:]) if text and '\0' not in text}
    # A folder above a named path is met where it has to be made.
    return not named.isdisjoint((given, *given.parents)) or any(given in path.parents for path in named)


def _user_message(error: BaseException) -> str | None:
    """Return the one line to print for an error a user can cause; None for a defect of the program."""
    text = ' '.join(str(error).split())
    if isinstance(error, UserError):
        # A data loader's worker hands its exception over with the traceback as text: the message is its end.
        return text.rpartition(f'{UserError.__module__}.{UserError.__qualname__}: ')[2]
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object!r:.80} has letters that this locale's {error.encoding} lacks: set PYTHONUTF8=1"
    if isinstance(error, OSError) and (
        error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or _is_named(error.filename)
    ):
        told = f'{error.filename}: {error.strerror}' if error.filename else text
        return told + _REMEDIES.get(error.errno or 0, '')
    if type(error).__name__ == 'OutOfMemoryError':  # of torch, which this module does not import
        return f'{text.partition(". ")[0]}: use a smaller batch_size, smaller images or --amp'
    if isinstance(error, RuntimeError) and 'gloo/transport' in text:
        return 'another process of this run has ended, see its error: start all of them again, with --resume'
    if not isinstance(error, OSError) or not error.filename:
        refusal = _refusal(error)
        if refusal is not None:
            return refusal
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
    part, by_config = _part_at_work(error)
    if not by_config and not _is_stock(files):
        return None
    if found := re.match(r'KeyError: (\S+) is not in the \S+?::(.+?) registry', text):
        return (
            f"type '{found[1]}' is not in the {found[2]} registry; nearest names: "
            f'{", ".join(_registered_near(*found.groups())) or "none"}; correct it in the config, or name in '
            'custom_imports the module that registers it'
        )
    kept = _keep_traceback(error)
    told = ' '.join(f'{part}: {text}'.removeprefix(': ').split())[:500]
    return f'{told}; correct the options in the config, or the data{f" (traceback in {kept})" if kept else ""}'


def _keep_traceback(error: BaseException) -> str | None:
    """Write the traceback into the run's log; return the file, None where there is none yet."""
    from mmengine.logging import MMLogger

    if MMLogger.check_instance_created(MMLogger.get_current_instance().instance_name):
        for handler in MMLogger.get_current_instance().handlers:
            if isinstance(handler, logging.FileHandler) and handler.stream:  # a closed one has none
                handler.stream.write(''.join(traceback.format_exception(error)))
                return os.path.relpath(handler.baseFilename)
    return None


def _is_stock(files: list[str]) -> bool:
    """Whether the innermost file that is of no general library is one of OpenMMLab's."""
    for file in map(Path, reversed(files)):
        if any(name in file.parts for name in _STOCK) and 'site-packages' in file.parts:
            return True
        if not any(file.is_relative_to(folder) for folder in _LIBRARY) and not str(file).startswith('<'):
            return False
    return False


def _registries() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    from mmengine import registry  # only here, so that this module stays cheap to import

    for root in vars(registry).values():
        if isinstance(root, registry.Registry):
            for child in (root, *root.children.values()):
                yield root.name, child.name, child.scope, child.module_dict


def _registered_near(name: str, kind: str) -> list[str]:
    found = [*_registries()]
    roots = {root for root, child, *_ in found if kind in (root, child)}  # a child may be named otherwise
    scopes = {key: scope for root, _, scope, modules in found if root in roots for key in modules}
    return [f'{scopes[x]}.{x}' for x in difflib.get_close_matches(name.rpartition('.')[2], scopes, n=3)]


def _part_at_work(error: BaseException) -> tuple[str, bool]:
    """Return the innermost part of a config that was built or ran: its class, with its options or its place.

    Also whether the config is to blame whosever code raised: the part is a layer of torch, of a size that the config
    gave, or the constructor that got the config's options.
    """
    classes = {class_ for *_, modules in _registries() for class_ in modules.values() if isinstance(class_, type)}
    part, blamed, being_built = '', False, None
    model: Any = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        local, owner = frame.f_locals, frame.f_locals.get('self')
        if frame.f_code.co_name == 'build_from_cfg' and isinstance(local.get('obj_cls'), type):
            being_built = local['obj_cls']
            part, blamed = f'{being_built.__name__}({_brief(local.get("args", {}))})', False
        elif type(owner) is being_built and being_built is not None:
            blamed = frame.f_code.co_name == '__init__'
        elif hasattr(type(owner), 'named_modules'):  # the object itself may be half made
            model, kind = owner if model is None else model, type(owner)
            place = next((name for name, module in model.named_modules() if module is owner), '')
            if being_built is None:
                part = f'{place} ({kind.__name__})' if place else kind.__name__
            blamed = kind.__module__.startswith('torch.nn.modules')
        elif type(owner) in classes:
            source = getattr(owner, 'ann_file', '') or getattr(owner, 'data_root', '')  # of a data set
            part = f'{type(owner).__name__}{f" ({source})" if source else ""}'
            blamed, being_built = False, None
        elif being_built is None and not frame.f_globals.get('__name__', '').startswith('torch.'):
            blamed = False
    return part, blamed


def _brief(options: Mapping[str, Any]) -> str:
    """Return the options of a config dict that are single values."""
    return ', '.join(
        f'{key}={value!r:.40}'
        for key, value in options.items()
        if isinstance(value, (str, int, float, list, tuple, NoneType))
    )[:200]


def _nobody_reads() -> bool:
    """Return whether what reads the standard output has ended, as ``| head`` does; then let go of what is left."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if not output.poll(0):  # an error is reported unasked
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


@contextmanager
def one_line_errors(stopped: str = 'stopped by Ctrl-C') -> Iterator[None]:
    """End a command line with ``error: …`` and exit status 1 where the user can mend the cause.

    Args:
        stopped: What to say on Ctrl-C, whose exit status is 130.
    """
    logging.raiseExceptions = False  # a log line that finds no room is lost, not followed by a traceback
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
        message = _user_message(error)
        if message is None:
            traceback.print_exc()
        else:
            print(f'error: {message}', file=sys.stderr)
        raise SystemExit(1) from None
