"""A teacher's answers on disk, so that inputs that come again need no forward pass."""

import hashlib
import json
import logging
import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from kd_plugins.distillation.recorder import Features
from kd_plugins.errors import UserError


class AnswerCache:
    """Features by the bytes of the teacher and of each input, in one SQLite file a teacher.

    A file is named by the teacher's weights, its structure and its taps; an answer in it by the input's pixels and the
    autocast precision. So neither another teacher nor another augmentation is ever answered from it, and any number of
    runs and processes may share a folder. An answer is written whole or not at all, whatever stops the run, with a
    checksum of itself, its input and its layout: what has changed on the disk is made again.

    Inputs come again where the data set repeats its augmentations, as ``BatchedImages(replay=...)`` does. Logits take
    some bytes an image, maps their size: 50,000 images times ``replay`` times 32 KiB for 128 maps of 8 x 8.

    Args:
        folder: Where the files lie.
        network: The teacher.
        parts: What else its answers depend on: the taps, the conversion of its inputs.

    Raises:
        UserError: The file is damaged or cannot be written.
    """

    def __init__(self, folder: str | Path, network: nn.Module, parts: Iterable[str]) -> None:
        digest = hashlib.sha256('\n'.join([str(network), *parts]).encode())
        for name, tensor in sorted(network.state_dict().items()):
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
                'or take cache out of the teacher record'
            ) from error

    def _keys(self, inputs: Tensor, data_samples: Sequence[Any] | None) -> tuple[str, list[bytes]]:
        device = inputs.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs.dtype
        kind = f'{tuple(inputs.shape[1:])} {precision}'
        shapes = [str(getattr(sample, 'img_shape', '')) for sample in data_samples or [None] * len(inputs)]
        return kind, [
            hashlib.blake2b(_bytes(image), key=f'{precision} {shape}'.encode()[:64], digest_size=16).digest()
            for image, shape in zip(inputs.detach().cpu(), shapes, strict=True)
        ]

    def get(self, inputs: Tensor, data_samples: Sequence[Any] | None) -> Features | None:
        """Return the features of a batch, or None where an image is not known yet, or its answer is damaged."""
        kind, keys = self._keys(inputs, data_samples)
        layouts = self._run('SELECT layout FROM layouts WHERE kind = ?', (kind,))
        if not layouts:
            return None
        marks = ', '.join('?' * len(keys))
        found = dict(self._run(f'SELECT key, value FROM answers WHERE key IN ({marks})', keys))
        if len(found) < len(set(keys)):
            return None
        try:
            layout = json.loads(layouts[0][0])
            whole = sum(size for _, levels in layout for *_, size in levels)
            answers = [_verified(found[key], whole, key + layouts[0][0].encode()) for key in keys]
            values = torch.frombuffer(bytearray().join(answers), dtype=torch.uint8).view(len(keys), whole)
            features: Features = {}
            start = 0
            for tap, levels in layout:
                features[tap] = []
                for shape, name, size in levels:
                    level = values[:, start : start + size].contiguous().view(getattr(torch, name))
                    features[tap].append(level.view(-1, *shape).to(inputs.device))
                    start += size
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            print_log(
                f'{self.path}: what it says of a batch is damaged ({error}); the teacher answers anew',
                'current',
                logging.WARNING,
            )
            return None
        return features

    def put(self, inputs: Tensor, data_samples: Sequence[Any] | None, features: Features) -> None:
        """Keep the features of a batch.

        Raises:
            UserError: A feature does not hold one entry for each image.
        """
        kind, keys = self._keys(inputs, data_samples)
        layout, columns = [], []
        for tap, levels in features.items():
            for level in levels:
                if level.shape[:1] != inputs.shape[:1]:
                    raise UserError(
                        f"the teacher's tap '{tap}' puts out {tuple(level.shape)} for {len(inputs)} "
                        'images: this cannot be kept, take cache out of the teacher record'
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


def _checksum(value: bytes | memoryview, about: bytes) -> bytes:
    return zlib.crc32(value, zlib.crc32(about)).to_bytes(4, 'big')


def _verified(stored: bytes, size: int, about: bytes) -> memoryview:
    """Return an answer without its checksum; older files hold none."""
    value, checksum = memoryview(stored)[:size], stored[size:]
    if len(value) != size or checksum not in (b'', _checksum(value, about)):
        raise ValueError('an answer is not the one that was written')
    return value


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
