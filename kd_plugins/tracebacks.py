"""Errors of stock code, explained by the part of the config that was built or ran when they were raised."""

import difflib
import logging
import os
import re
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

# Packages whose code is driven by the config: their errors are about the config or the data.
_STOCK = ('mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'mmseg')
_LIBRARY = {Path(sysconfig.get_path(name)) for name in ('stdlib', 'platstdlib', 'purelib', 'platlib')}
_OWN = Path(__file__).parent


def config_message(error: BaseException) -> str | None:
    """Return one line on the part of the config that was built or ran when an error was raised.

    None where neither OpenMMLab's code raised it nor the config's options are its cause.
    """
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
    log = _log_traceback(error)
    message = ' '.join(f'{part}: {text}'.removeprefix(': ').split())[:500]
    return f'{message}; correct the options in the config, or the data{f" (traceback in {log})" if log else ""}'


def of_hook(error: BaseException) -> BaseException:
    """Return a hook's own error, where mmengine has raised another in its place, which hides where it comes from.

    That is so for a TypeError alone; the hook need not be at fault, as one that draws the first images is not.
    """
    functions = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    replaced = isinstance(error, TypeError) and functions[-1:] == ['call_hook']
    own = error.__context__ if replaced else None
    return of_hook(own) if own else error  # a hook may call others, as ExportHook does


def _log_traceback(error: BaseException) -> str | None:
    """Write the traceback into the run's log; return the file, None where there is none yet."""
    from mmengine.logging import MMLogger

    if MMLogger.check_instance_created(MMLogger.get_current_instance().instance_name):
        for handler in MMLogger.get_current_instance().handlers:
            if isinstance(handler, logging.FileHandler) and handler.stream:  # a closed one has none
                handler.stream.write(''.join(traceback.format_exception(error)))
                return os.path.relpath(handler.baseFilename)
    return None


def _is_stock(files: list[str]) -> bool:
    """Whether the innermost file that belongs to no general library is one of OpenMMLab's."""
    for file in map(Path, reversed(files)):
        if file.is_relative_to(_OWN):  # which is installed beside the libraries
            return False
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
    """Return the innermost part of a config that was built or ran: its class, with its options or its name.

    Also return whether the config is the cause, whichever code raised: the part is a layer of torch, whose size the
    config gave, or a constructor, which got the config's options.
    """
    classes = {class_ for *_, modules in _registries() for class_ in modules.values() if isinstance(class_, type)}
    part, by_config, built = '', False, None
    model: Any = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        local, owner = frame.f_locals, frame.f_locals.get('self')
        if frame.f_code.co_name == 'build_from_cfg' and isinstance(local.get('obj_cls'), type):
            built = local['obj_cls']
            part, by_config = f'{built.__name__}({_brief(local.get("args", {}))})', False
        elif type(owner) is built and built is not None:
            by_config = frame.f_code.co_name == '__init__'
        elif hasattr(type(owner), 'named_modules'):  # the object itself may be half made
            model, kind = owner if model is None else model, type(owner)
            name = next((name for name, module in model.named_modules() if module is owner), '')
            if built is None:
                part = f'{name} ({kind.__name__})' if name else kind.__name__
            by_config = kind.__module__.startswith('torch.nn.modules')
        elif type(owner) in classes:
            source = getattr(owner, 'ann_file', '') or getattr(owner, 'data_root', '')  # of a data set
            part = f'{type(owner).__name__}{f" ({source})" if source else ""}'
            by_config, built = False, None
        elif built is None and not frame.f_globals.get('__name__', '').startswith('torch.'):
            by_config = False
    return part, by_config


def _brief(options: Mapping[str, Any]) -> str:
    """Return the options of a config dict that are single values."""
    return ', '.join(
        f'{key}={value!r:.40}'
        for key, value in options.items()
        if isinstance(value, (str, int, float, list, tuple, NoneType))
    )[:200]
