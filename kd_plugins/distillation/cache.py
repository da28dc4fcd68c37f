"""A teacher's features on disk, so that repeated inputs need no forward pass."""

import hashlib
import json
import logging
import shutil
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from enum import Enum
from functools import partial
from itertools import accumulate, islice
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any, TypeVar

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from kd_plugins.distillation.origins import Origin
from kd_plugins.distillation.recorder import Features
from kd_plugins.errors import UserError
from kd_plugins.utils.code import sources

Item = TypeVar('Item')
Result = TypeVar('Result')

_LARGE = 2**16  # bytes of an entry whose checksum takes as long as reading it: it is compared once in a process


class FeatureCache:
    """A teacher's features, keyed by the bytes of the teacher and of each input, in one SQLite file per teacher.

    The name of the file is a hash of the teacher's weights, structure, options and taps, and of the files of those
    classes in it that are no library's; the key of an entry is a hash of the input's pixels, or of the image that they
    follow from, the autocast precision, and the sizes to which maps are pooled. Features of another teacher or another
    augmentation are therefore never returned, and any number of runs and processes may share a folder. What a library
    changes in its next version, or a function registers on a network (forward hooks), is not seen: delete the folder
    then. Entries are written whole or not at all, with a checksum over the features, the input and the layout; a
    damaged entry is computed again. Features have the memory layout that those of the file's first run had,
    channels-last or not.

    The checksum of a large entry is compared once in a process, which keeps a hundred bytes for each.

    Inputs repeat where the data set repeats its augmentations, as ``BatchedImages(replay=...)`` does. Logits take a few
    bytes per image, maps their size: 50,000 images times ``replay`` times 32 KiB for 128 maps of 8 x 8.

    Args:
        folder: Folder of the files.
        network: The teacher.
        parts: Everything else that the features depend on: the taps, the conversion of the inputs.

    Raises:
        UserError: The file is damaged or cannot be written.
    """

    def __init__(self, folder: str | Path, network: nn.Module, parts: Iterable[str]) -> None:
        code = sources({type(module) for module in network.modules()})
        digest = hashlib.sha256('\n'.join([str(network), *_options(network), *code, *parts]).encode())
        for name, tensor in sorted((network.state_dict() | dict(network.named_buffers())).items()):
            digest.update(name.encode())
            digest.update(_bytes(tensor))
        self.path = Path(folder, f'{digest.hexdigest()[:32]}.sqlite')
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._local = threading.local()  # has a connection for each thread
        self._pool = ThreadPoolExecutor()
        self._expected: int | None = None
        self._stored, self._read, self._told = 0, False, False
        self._checked: dict[str, set[bytes]] = {}  # large entries whose checksum was compared, by their layout
        with self._transaction() as file:  # in files of before, all keys are hashes of the inputs
            self._by_origin = file.execute('PRAGMA user_version').fetchone() >= (1,)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ('_local', '_pool')}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _local=threading.local(), _pool=ThreadPoolExecutor())

    def expect(self, images: int) -> None:
        """Log how much room the features of as many inputs take, as soon as the first ones tell.

        Log it, too, if more inputs than these are stored and none was read, so that they do not repeat.
        """
        self._expected = images

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            if not hasattr(self._local, 'file'):
                file = sqlite3.connect(self.path, timeout=60)  # other processes may write at the same time
                file.execute('PRAGMA page_size=32768')  # of a new file: maps are read twice as fast as from 4 KiB
                _share(file)
                file.execute('PRAGMA synchronous=NORMAL')
                if not file.execute('SELECT 1 FROM sqlite_master').fetchone():
                    with file:
                        file.execute('BEGIN IMMEDIATE')  # another process may do the same
                        file.execute('CREATE TABLE IF NOT EXISTS layouts (kind TEXT PRIMARY KEY, layout TEXT)')
                        file.execute('CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, value BLOB)')
                        file.execute('PRAGMA user_version=1')
                self._local.file = file
            with self._local.file as file:
                yield file
        except sqlite3.Error as error:
            raise UserError(
                f"{self.path}: the teacher's cache cannot be used ({error}); make room, delete the file, "
                "or remove cache from the teacher's config dict"
            ) from error

    def _in_threads(
        self, function: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], size: int
    ) -> list[Result]:
        """Return ``function(items)``, computed in parts by torch's number of threads; an item has ``size`` bytes."""
        threads = max(1, min(torch.get_num_threads(), len(items) * size // 2**20))
        if threads == 1:
            return function(items)
        step = -(-len(items) // threads)
        parts = [items[start : start + step] for start in range(0, len(items), step)]
        return [result for part in self._pool.map(function, parts) for result in part]

    def keys(
        self, inputs: Tensor, data_samples: Sequence[Any] | None, origin: Origin | None = None, form: str = ''
    ) -> tuple[str, list[bytes]]:
        """Return the key of what all images of a batch share, and the key of each image.

        Args:
            inputs: The batch.
            data_samples: Annotations of its images.
            origin: What the batch follows from, where that is known: fewer bytes to hash.
            form: What becomes of the features before they are stored, where that is not the teacher's alone.
        """
        device = inputs.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs.dtype
        kind = f'{tuple(inputs.shape[1:])} {precision}'
        shapes = [str(getattr(sample, 'img_shape', '')) for sample in data_samples or [None] * len(inputs)]
        if origin is None or not self._by_origin:
            images: Tensor | list[Tensor] = inputs
            contexts = [f'{precision} {shape or tuple(inputs.shape[1:])}'.encode()[:64] for shape in shapes]
        else:
            images, way = origin
            alike = [images[0]] * len(images) if isinstance(images, Tensor) else images
            texts = [f'{kind} {way} {x.dtype} {tuple(x.shape)} {shape}' for x, shape in zip(alike, shapes, strict=True)]
            digests = {text: hashlib.blake2b(text.encode()).digest() for text in set(texts)}
            contexts = [digests[text] for text in texts]

        def hashes(part: Sequence[tuple[memoryview, bytes]]) -> list[bytes]:
            return [hashlib.blake2b(pixels, key=context, digest_size=16).digest() for pixels, context in part]

        keys = self._in_threads(hashes, list(zip(_rows(images), contexts, strict=True)), images[0].nbytes)
        if form:
            keys = [hashlib.blake2b(key + form.encode(), digest_size=16).digest() for key in keys]
        return f'{kind} {form}'.rstrip(), keys

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """Return the positions of the images that have no entry."""
        with self._transaction() as file:
            found = {key for (key,) in file.execute(f'SELECT key FROM answers WHERE key IN ({_marks(keys)})', keys)}
        return [i for i, key in enumerate(keys) if key not in found]

    def get(self, kind: str, keys: Sequence[bytes], device: torch.device) -> Features | None:
        """Return the features of a batch, or None where an image has no entry or a damaged one.

        Args:
            kind: The first of the :meth:`keys`.
            keys: Keys of the images.
            device: Device of the features.
        """
        with self._transaction() as file:
            layouts = file.execute('SELECT layout FROM layouts WHERE kind = ?', (kind,)).fetchall()
        if not layouts:
            return None
        positions: dict[bytes, list[int]] = {}
        for i, key in enumerate(keys):
            positions.setdefault(key, []).append(i)
        try:
            ((text,),) = layouts
            layout = json.loads(text)
            described = [level for _, levels in layout for level in levels]
            width = sum(size for _, _, size, *_ in described)
            values = [torch.empty(len(keys), size, dtype=torch.uint8) for _, _, size, *_ in described]
            rows = [value.numpy() for value in values]
            ends = list(accumulate(value.shape[1] for value in values))

            def read(part: Sequence[bytes]) -> list[bytes]:
                found = []
                with self._transaction() as file:
                    for key, stored in file.execute(
                        f'SELECT key, value FROM answers WHERE key IN ({_marks(part)})', part
                    ):  # one at a time, so that it is checked and copied in the processor's cache
                        value = _verified(stored, width, None if key in checked else key + text.encode())
                        for level, end in zip(rows, ends, strict=True):
                            for i in positions[key]:
                                level[i] = value[end - level.shape[1] : end]
                        found.append(key)
                return found

            checked = self._checked.setdefault(text, set())
            if len(self._in_threads(read, list(positions), width)) < len(positions):
                return None
            if width >= _LARGE:
                checked.update(positions)
            unpacked = iter(
                _unpacked(value.view(getattr(torch, name)), shape, bool(order)).to(device)
                for value, (shape, name, _, *order) in zip(values, described, strict=True)
            )
            features: Features = {tap: list(islice(unpacked, len(levels))) for tap, levels in layout}
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            print_log(
                f'{self.path}: the features of a batch are damaged ({error}); the teacher computes them again',
                'current',
                logging.WARNING,
            )
            return None
        self._read = True
        return features

    def put(self, kind: str, keys: Sequence[bytes], features: Features) -> None:
        """Store the features of the images with these keys.

        Raises:
            UserError: A feature does not have one entry per image.
        """
        for tap, levels in features.items():
            for level in levels:
                if level.shape[:1] != (len(keys),):
                    raise UserError(
                        f"the teacher's tap '{tap}' outputs {tuple(level.shape)} for {len(keys)} images, expected "
                        "one entry per image to cache: remove cache from the teacher's config dict"
                    )
        text = json.dumps([(tap, [_described(level) for level in levels]) for tap, levels in features.items()])
        with self._transaction() as file:
            file.execute('BEGIN IMMEDIATE')  # no other process writes a layout meanwhile
            for (other,) in file.execute('SELECT layout FROM layouts WHERE kind = ?', (kind,)).fetchall():
                if _without_order(other) == _without_order(text):
                    text = other  # that of the entries that are there
            file.execute('INSERT OR REPLACE INTO layouts VALUES (?, ?)', (kind, text))
            columns = [
                _packed(level, len(described) > 3)
                for (tap, layout) in json.loads(text)
                for level, described in zip(features[tap], layout, strict=True)
            ]
            rows = [(key, bytes(_bytes(value))) for key, value in zip(keys, torch.cat(columns, 1), strict=True)]
            file.executemany(
                'INSERT OR REPLACE INTO answers VALUES (?, ?)',
                [(key, value + _checksum(value, key + text.encode())) for key, value in rows],
            )
        if self._expected is not None and not self._told:
            self._told = True
            self._note_room(len(rows[0][1]), self._expected)
        self._stored += len(keys)
        if self._expected is not None and self._stored > self._expected and not self._read:
            self._expected = None
            print_log(
                f"{self.path}: the teacher's features of {self._stored} images were stored and none was read, since "
                'the augmentations of the data set draw anew every time: let them repeat (kd_plugins.RepeatedViews, or '
                "BatchedImages(replay=...)), or remove cache from the teacher's config dict",
                'current',
                logging.WARNING,
            )

    def _note_room(self, size: int, images: int) -> None:
        needed, free = size * images / 1e9, shutil.disk_usage(self.path.parent).free / 1e9
        lack = ": make room, tap smaller maps, or remove cache from the teacher's config dict" if needed > free else ''
        print_log(
            f"{self.path}: the teacher's features take {size / 1e3:.3g} kB an image, {needed:.3g} GB for {images} "
            f'inputs; {free:.3g} GB are free{lack}',
            'current',
            logging.WARNING if lack else logging.INFO,
        )


def _share(file: sqlite3.Connection) -> None:
    """Let others read while one writes. Of a new file SQLite refuses that at once while another process asks too."""
    end = time.monotonic() + 60
    while True:
        try:
            file.execute('PRAGMA journal_mode=WAL')
            return
        except sqlite3.OperationalError as error:
            if 'locked' not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.02)


def _marks(keys: Sequence[bytes]) -> str:
    return ', '.join('?' * len(keys))


def _described(level: Tensor) -> list[Any]:
    """Return shape, type and bytes of an image's feature, and its order where that is another than the shape's."""
    transposed = level.dim() == 4 and not level.is_contiguous()
    order = ['channels_last'] * (transposed and level.is_contiguous(memory_format=torch.channels_last))
    name = str(level.dtype).removeprefix('torch.')
    return [tuple(level.shape[1:]), name, level[0].numel() * level.element_size(), *order]


def _without_order(text: str) -> Any:
    with suppress(TypeError, ValueError):
        return [[tap, [level[:3] for level in levels]] for tap, levels in json.loads(text)]
    return None


def _packed(level: Tensor, channels_last: bool) -> Tensor:
    rows = (level.movedim(1, -1) if channels_last else level).cpu().contiguous()
    return rows.unsqueeze(-1).flatten(1).view(torch.uint8)  # a row each, also of one number


def _unpacked(level: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    if not channels_last:
        return level.view(-1, *shape)
    channels, height, width = shape
    return level.view(-1, height, width, channels).movedim(-1, 1)


def _options(network: nn.Module) -> Iterator[str]:
    """Yield the attributes of all modules that can be read: most are in no text of the network (``out_indices``)."""
    known = {*vars(nn.Module()), 'init_cfg'}  # torch's own, and the source of weights that are hashed themselves
    for name, module in network.named_modules():
        for key, value in vars(module).items():
            if key not in known:
                yield f'{name}.{key}={json.dumps(_plain(value, {}))}'


def _plain(value: Any, seen: dict[int, tuple[int, Any]]) -> Any:
    """Return what stands for a value in JSON: of an object of some class, its attributes.

    Args:
        value: The value.
        seen: The containers and objects on the way here, by their id: each is described once.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (bytes, complex, range, slice, PurePath, Enum, torch.dtype)):
        return str(value)
    if isinstance(getattr(value, '__qualname__', None), str):  # a function or a class
        return f'{value.__module__}.{value.__qualname__}'
    kind = f'{type(value).__module__}.{type(value).__qualname__}'
    if isinstance(value, (nn.Module, ModuleType, logging.Logger)):  # the attributes of submodules come by themselves
        return kind
    if id(value) in seen:
        return f'number {seen[id(value)][0]}'
    seen[id(value)] = len(seen), value  # kept, so that no other object gets its id
    if isinstance(value, Mapping):
        return [[str(key), _plain(x, seen)] for key, x in value.items()]
    if isinstance(value, (list, tuple)):
        return [_plain(x, seen) for x in value]
    if isinstance(value, (set, frozenset)):
        return sorted(json.dumps(_plain(x, seen)) for x in value)
    if isinstance(value, partial):
        return [_plain(x, seen) for x in (value.func, value.args, value.keywords)]
    if hasattr(value, '__array__'):  # of torch or NumPy
        with suppress(TypeError, ValueError, RuntimeError):  # a tensor without values, an array of objects
            tensor = torch.as_tensor(value)
            return [str(tensor.dtype), [*tensor.shape], hashlib.sha256(_bytes(tensor)).hexdigest()]
        return kind
    slots = [name for base in type(value).__mro__ for name in getattr(base, '__slots__', ())]
    attributes = dict(getattr(value, '__dict__', {})) | {x: getattr(value, x) for x in slots if hasattr(value, x)}
    return [kind, _plain(attributes, seen)]


def _checksum(value: bytes | memoryview, context: bytes) -> bytes:
    return zlib.crc32(value, zlib.crc32(context)).to_bytes(4, 'big')


def _verified(stored: bytes, size: int, context: bytes | None) -> memoryview:
    """Return an entry without its checksum, which is compared where a context is given; older entries have none."""
    value, checksum = memoryview(stored)[:size], stored[size:]
    if len(value) != size or (context is not None and checksum not in (b'', _checksum(value, context))):
        raise ValueError('wrong size or checksum')
    return value


def _rows(images: Tensor | Sequence[Tensor]) -> list[memoryview]:
    """Return the bytes of each image."""
    if not isinstance(images, Tensor):
        return [_bytes(image) for image in images]
    whole, size = _bytes(images), images[0].nbytes
    return [whole[start : start + size] for start in range(0, len(whole), size)]


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
