"""Pickle and YAML files, read without running code that they may hold."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TextIO

import yaml
from mmengine.fileio import PickleHandler, YamlHandler, register_handler

from kd_plugins.errors import UserError

_PLAIN_NAMES = {
    *(('builtins', name) for name in ('bytearray', 'complex', 'frozenset', 'range', 'set', 'slice')),
    ('collections', 'OrderedDict'),
    ('numpy', 'ndarray'),
    ('numpy', 'dtype'),
    ('numpy._core.multiarray', '_reconstruct'),
    ('numpy._core.multiarray', 'scalar'),
    ('numpy._core.numeric', '_frombuffer'),
    ('_codecs', 'encode'),  # by which Python 3 writes the bytes of an array under protocol 2
    ('mmengine.structures.instance_data', 'InstanceData'),  # mmdet's proposals
}


class PlainUnpickler(pickle.Unpickler):
    """Loads plain values and NumPy arrays only, so that a file cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle names, where it is harmless."""
        known = module.replace('__builtin__', 'builtins').replace('numpy.core', 'numpy._core')
        if (known, name) not in _PLAIN_NAMES:
            raise pickle.UnpicklingError(f'{module}.{name} is neither a plain value nor a numpy array')
        return super().find_class(module, name)


class _PlainPickleHandler(PickleHandler):
    def load_from_fileobj(self, file: BinaryIO, **kwargs: Any) -> Any:
        with _refusing('.pkl'):
            return PlainUnpickler(file, **kwargs).load()


class _PlainYamlHandler(YamlHandler):
    def load_from_fileobj(self, file: TextIO, **kwargs: Any) -> Any:
        with _refusing('.yaml'):
            return super().load_from_fileobj(file, Loader=getattr(yaml, 'CSafeLoader', yaml.SafeLoader))


@contextmanager
def _refusing(ending: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged pickle raises almost anything
        raise UserError(
            f'a {ending} file that the config names (ann_file, proposal_file or the like) is damaged, or holds code, '
            f'which is refused ({error}): save it as JSON, or, if you trust a pickle, allow it (--allow-pickle)'
        ) from error


_allowed = False  # set by guard_files


def pickle_allowed() -> bool:
    """Return whether pickled code may run in this process, as :func:`guard_files` was told."""
    return _allowed


def guard_files(allow_pickle: bool | None = None) -> None:
    """Make mmengine read ``.pkl`` and ``.yaml`` files without running code, in this process.

    Args:
        allow_pickle: Leave ``.pkl`` to mmengine's own reader, which runs the code that a file holds; None for what
            an earlier call has said, at first False.
    """
    global _allowed
    allow_pickle = _allowed = _allowed if allow_pickle is None else allow_pickle
    register_handler(['pickle', 'pkl'])(PickleHandler if allow_pickle else _PlainPickleHandler)
    register_handler(['yaml', 'yml'])(_PlainYamlHandler)
