"""A teacher's features on disk, so that repeated inputs need no forward pass."""

import hashlib
import json
import logging
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from kd_plugins.distillation.recorder import Features
from kd_plugins.errors import UserError


class FeatureCache:
    """A teacher's features, keyed by the bytes of the teacher and of each input, in one SQLite file per teacher.

    The name of the file is a hash of the teacher's weights, structure, options and taps; the key of an entry is a hash
    of the input's pixels and the autocast precision. Features of another teacher or another augmentation are therefore
    never returned, and any number of runs and processes may share a folder. Entries are written whole or not at all,
    with a checksum over the features, the input and the layout; a damaged entry is computed again.

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
        digest = hashlib.sha256('\n'.join([str(network), *_options(network), *parts]).encode())
        for name, tensor in sorted((network.state_dict() | dict(network.named_buffers())).items()):
            digest.update(name.encode())
            digest.update(_bytes(tensor))
        self.path = Path(folder, f'{digest.hexdigest()[:32]}.sqlite')
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: sqlite3.Connection | None = None

    def _run(self, statement: str, rows: Sequence[Any], many: bool = False) -> list[tuple[Any, ...]]:
        try:
            if self._file is None:  # other processes may write at the same time
                self._file = sqlite3.connect(self.path, timeout=60)
                self._file.execute('PRAGMA journal_mode=WAL')
                self._file.execute('PRAGMA synchronous=NORMAL')
                with self._file:
                    self._file.execute('CREATE TABLE IF NOT EXISTS layouts (kind TEXT PRIMARY KEY, layout TEXT)')
                    self._file.execute('CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, value BLOB)')
            with self._file:
                return (self._file.executemany if many else self._file.execute)(statement, rows).fetchall()
        except sqlite3.Error as error:
            raise UserError(
                f"{self.path}: the teacher's cache cannot be used ({error}); make room, delete the file, "
                "or remove cache from the teacher's config dict"
            ) from error

    def keys(self, inputs: Tensor, data_samples: Sequence[Any] | None) -> tuple[str, list[bytes]]:
        """Return the key of what all images of a batch share, and the key of each image."""
        device = inputs.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs.dtype
        kind = f'{tuple(inputs.shape[1:])} {precision}'
        shapes = [str(getattr(sample, 'img_shape', '')) for sample in data_samples or [None] * len(inputs)]
        return kind, [
            hashlib.blake2b(_bytes(image), key=f'{precision} {shape}'.encode()[:64], digest_size=16).digest()
            for image, shape in zip(inputs.detach().cpu(), shapes, strict=True)
        ]

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """Return the positions of the images that have no entry."""
        placeholders = ', '.join('?' * len(keys))
        found = {key for (key,) in self._run(f'SELECT key FROM answers WHERE key IN ({placeholders})', keys)}
        return [i for i, key in enumerate(keys) if key not in found]

    def get(self, kind: str, keys: Sequence[bytes], device: torch.device) -> Features | None:
        """Return the features of a batch, or None where an image has no entry or a damaged one.

        Args:
            kind: The first of the :meth:`keys`.
            keys: Keys of the images.
            device: Device of the features.
        """
        layouts = self._run('SELECT layout FROM layouts WHERE kind = ?', (kind,))
        if not layouts:
            return None
        placeholders = ', '.join('?' * len(keys))
        found = dict(self._run(f'SELECT key, value FROM answers WHERE key IN ({placeholders})', keys))
        if len(found) < len(set(keys)):
            return None
        try:
            layout = json.loads(layouts[0][0])
            width = sum(size for _, levels in layout for *_, size in levels)
            entries = [_verified(found[key], width, key + layouts[0][0].encode()) for key in keys]
            values = torch.frombuffer(bytearray().join(entries), dtype=torch.uint8).view(len(keys), width)
            features: Features = {}
            start = 0
            for tap, levels in layout:
                features[tap] = []
                for shape, name, size in levels:
                    level = values[:, start : start + size].contiguous().view(getattr(torch, name))
                    features[tap].append(level.view(-1, *shape).to(device))
                    start += size
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            print_log(
                f'{self.path}: the features of a batch are damaged ({error}); the teacher computes them again',
                'current',
                logging.WARNING,
            )
            return None
        return features

    def put(self, kind: str, keys: Sequence[bytes], features: Features) -> None:
        """Store the features of the images with these keys.

        Raises:
            UserError: A feature does not have one entry per image.
        """
        layout, columns = [], []
        for tap, levels in features.items():
            for level in levels:
                if level.shape[:1] != (len(keys),):
                    raise UserError(
                        f"the teacher's tap '{tap}' outputs {tuple(level.shape)} for {len(keys)} images, expected "
                        "one entry per image to cache: remove cache from the teacher's config dict"
                    )
                columns.append(level.cpu().contiguous().flatten(1).view(torch.uint8))
            layout.append(
                (
                    tap,
                    [
                        (tuple(x.shape[1:]), str(x.dtype).removeprefix('torch.'), x[0].numel() * x.element_size())
                        for x in levels
                    ],
                )
            )
        values = torch.cat(columns, 1)
        text = json.dumps(layout)
        self._run('INSERT OR REPLACE INTO layouts VALUES (?, ?)', (kind, text))
        rows = [(key, _bytes(value)) for key, value in zip(keys, values, strict=True)]
        self._run(
            'INSERT OR REPLACE INTO answers VALUES (?, ?)',
            [(key, value + _checksum(value, key + text.encode())) for key, value in rows],
            many=True,
        )


def _options(network: nn.Module) -> Iterator[str]:
    """Yield the plain attributes of all modules: most are in no text of the network (``out_indices``, heads)."""
    known = {*vars(nn.Module()), 'init_cfg'}  # torch's own, and the source of weights that are hashed themselves
    for name, module in network.named_modules():
        for key, value in vars(module).items():
            if key in known:
                continue
            with suppress(TypeError, ValueError):  # no plain value
                yield f'{name}.{key}={json.dumps(value)}'


def _checksum(value: bytes | memoryview, context: bytes) -> bytes:
    return zlib.crc32(value, zlib.crc32(context)).to_bytes(4, 'big')


def _verified(stored: bytes, size: int, context: bytes) -> memoryview:
    """Return an entry without its checksum; entries of older versions have none."""
    value, checksum = memoryview(stored)[:size], stored[size:]
    if len(value) != size or checksum not in (b'', _checksum(value, context)):
        raise ValueError('wrong size or checksum')
    return value


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
