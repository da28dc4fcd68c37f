"""Reading images so that an unreadable one is reported instead of trained on."""

import hashlib
import io
import logging
from contextlib import suppress

import cv2
import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine import fileio
from mmengine.logging import print_log
from PIL import Image

from kd_plugins.errors import UserError
from kd_plugins.registry import TRANSFORMS

_TIFF = b'II*\0', b'MM\0*'  # how one begins
_UNDECODABLE = (OSError, SyntaxError, RuntimeError, Image.DecompressionBombError, cv2.error)


def _is_truncated_jpeg(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end marker: OpenCV fills the rest with grey and reports nothing.

    The marker is looked for behind the start of the first scan, since an embedded thumbnail brings its own; the data
    of a scan never contain one by chance.
    """
    if data.startswith(b'\x89PNG'):
        return b'IEND' not in data
    if not data.startswith(b'\xff\xd8'):
        return False
    at = 2
    while data[at : at + 1] == b'\xff' and data[at + 1 : at + 2] != b'\xda':
        if data[at + 1 : at + 2] == b'\xff':  # a fill byte
            at += 1
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], 'big')
    return data.find(b'\xff\xd9', at) < 0


def _orientation(data: bytes) -> int:
    """Return the EXIF orientation of a JPEG, PNG or TIFF, which OpenCV turns by it: 1, upright, to 8."""
    # The search takes a hundredth of the parser's time.
    found = b'eXIf' in data if data.startswith(b'\x89PNG') else b'Exif\0\0' in data[: 2**16]
    if not found and not data.startswith(_TIFF):
        return 1
    try:
        with Image.open(io.BytesIO(data)) as image:
            orientation = image.getexif().get(0x0112)
            return orientation if orientation in range(1, 9) else 1  # OpenCV turns by no other value
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return 1


def _beyond_a_byte(path: str) -> int | None:
    """Return the largest value above 255 of a local file; 65535, which is 255 in a byte as well, is no class."""
    with suppress(*_UNDECODABLE), Image.open(path) as image:
        if image.mode[0] in 'IF':  # the header tells; others have bytes
            values = np.asarray(image)
            wide = values[(values > 255) & (values != 65535)]
            return int(wide.max()) if len(wide) else None
    return None


class _Checked:
    """What loads a file for each sample, and refuses a damaged one, or leaves its sample out and logs that once.

    Args:
        what: What the files are, in words.
        skip_corrupt: Whether samples of damaged files are left out.
    """

    def __init__(self, what: str, skip_corrupt: bool) -> None:
        self.what, self.skip_corrupt = what, skip_corrupt
        # A Bloom filter of the paths, in memory that the workers of a data loader share: each file is reported once.
        self._reported = torch.zeros(2**14, dtype=torch.bool).share_memory_()

    def refuse(self, path: str, defect: str) -> None:
        """Raise a UserError, or log the defect where damaged files are left out."""
        if not self.skip_corrupt:
            raise UserError(
                f'{path}: {self.what} {defect}; replace it, or train without it (--skip-corrupt, or '
                f'skip_corrupt=True on {type(self).__name__})'
            )
        self.report(path, f'{defect}; training takes another sample instead')

    def report(self, path: str, text: str) -> None:
        """Log something about a file, unless one of its path was logged before."""
        digest = hashlib.blake2b(str(path).encode(errors='surrogateescape'), digest_size=8).digest()
        slots = np.frombuffer(digest, np.uint16).astype(np.int64) % len(self._reported)
        if not self._reported[slots].all():
            self._reported[slots] = True
            print_log(f'{path}: {self.what} {text}', 'current', logging.WARNING)


@TRANSFORMS.register_module()
class LoadImage(_Checked, LoadImageFromFile):
    """mmcv's ``LoadImageFromFile`` that reports every unreadable image.

    An image of another size than its annotation's ``height`` and ``width`` counts as unreadable: its boxes belong to
    another image, or to the stored pixels of one that its EXIF orientation turns. Where turning keeps the size, or its
    labels are those of pixels, one logged warning says that they must be those of the turned image.

    Args:
        skip_corrupt: Whether to log an unreadable image once and return None, for which mmengine's data sets draw
            another sample in training. A test set must be whole: there the data set raises and names the index.
        to_float32: Whether the image is float32 instead of uint8.
        color_type: As in :func:`mmcv.imfrombytes`.
        imdecode_backend: As in :func:`mmcv.imfrombytes`.
        backend_args: As in :func:`mmengine.fileio.get`.

    Raises:
        UserError: The file is missing; or it is truncated, cannot be decoded or has another size than its annotation
            says, and ``skip_corrupt`` is False.
    """

    def __init__(
        self,
        skip_corrupt: bool = False,
        to_float32: bool = False,
        color_type: str = 'color',
        imdecode_backend: str = 'cv2',
        *,
        backend_args: dict | None = None,
    ) -> None:
        LoadImageFromFile.__init__(self, to_float32, color_type, imdecode_backend, backend_args=backend_args)
        _Checked.__init__(self, 'image file', skip_corrupt)

    def transform(self, results: dict) -> dict | None:
        """Read ``results['img_path']``; set ``img`` (H, W, 3), ``img_shape`` and ``ori_shape``."""
        if 'img_path' not in results:
            raise UserError(
                f'LoadImage: the sample has no img_path, only {", ".join(results)}: put it first in the pipeline'
            )
        path = results['img_path']
        try:
            data = fileio.get(path, backend_args=self.backend_args)
        except FileNotFoundError:
            raise UserError(f'{path}: image file is missing; check data_root and data_prefix') from None
        except OSError as error:
            self.refuse(path, f'cannot be read ({error.strerror})')
            return None
        if _is_truncated_jpeg(data):
            self.refuse(path, 'is truncated')
            return None
        try:
            image = mmcv.imfrombytes(data, flag=self.color_type, backend=self.imdecode_backend)
        except _UNDECODABLE:
            image = None
        if image is None:
            self.refuse(path, 'cannot be decoded')
            return None
        labelled = 'boxes' if results.get('instances') else 'labels' if results.get('seg_map_path') else None
        expected = (results['height'], results['width']) if {'height', 'width'} <= results.keys() else None
        if expected or labelled:
            stored = 'ignore_orientation' in self.color_type or self.color_type == 'unchanged'
            always = data.startswith(_TIFF)  # whatever color_type says
            orientation = _orientation(data) if always or not stored else 1
            remedy = 'save the stored pixels without it' if always else "set color_type='color_ignore_orientation'"
            size = image.shape[:2]
            if expected and size != expected:
                hint = f': EXIF orientation {orientation} turned it; for boxes of the stored one {remedy}'
                hint = hint if size[::-1] == expected and orientation > 4 else ''
                self.refuse(path, f'is {size[1]}x{size[0]}, its annotation says {expected[1]}x{expected[0]}{hint}')
                return None
            if orientation != 1 and labelled:
                self.report(
                    path,
                    f'is turned by its EXIF orientation {orientation}: its {labelled} must be those of the turned '
                    f'image, or else {remedy}',
                )
        if self.to_float32:
            image = image.astype(np.float32)
        results['img'] = image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(skip_corrupt={self.skip_corrupt}, to_float32={self.to_float32}, '
            f"color_type='{self.color_type}', imdecode_backend='{self.imdecode_backend}', "
            f'backend_args={self.backend_args})'
        )


@TRANSFORMS.register_module()
class LoadSegMap(_Checked, BaseTransform):
    """A transform that reads the classes of pixels, as mmseg's ``LoadAnnotations``, with its errors naming the file.

    Args:
        load: Config dict of the transform, which reads ``results['seg_map_path']``.
        skip_corrupt: Whether to log a damaged file once and return None, as :class:`LoadImage` does.

    Raises:
        UserError: The file is missing, has more than one number for each pixel, or one above 255; or it cannot be
            decoded, or has another size than the image, and ``skip_corrupt`` is False.
    """

    def __init__(self, load: dict, skip_corrupt: bool = False) -> None:
        super().__init__('label map', skip_corrupt)
        self.load = TRANSFORMS.build(load)

    def transform(self, results: dict) -> dict | None:
        """Read the file; set ``gt_seg_map`` (H, W). A sample without ``seg_map_path`` stays as it is."""
        if 'seg_map_path' not in results:  # of an image alone, to predict by a run's own config
            return results
        path, size = str(results['seg_map_path']), results.get('ori_shape')
        try:
            loaded = self.load(results)
        except FileNotFoundError:
            raise UserError(f'{path}: label map is missing; check data_prefix and seg_map_suffix') from None
        except (*_UNDECODABLE, AttributeError) as error:  # OpenCV returns None, whose attributes are read
            reason = getattr(error, 'strerror', None)
            self.refuse(path, f'cannot be read ({reason})' if reason else 'cannot be decoded')
            return None
        if (found := _beyond_a_byte(path)) is not None:
            raise UserError(
                f'{path}: label map has class {found}, of 16 bits or more, and mmseg reads 0 to 255: convert its '
                'numbers (of Cityscapes, labelTrainIds)'
            )
        height, width, *values = loaded['gt_seg_map'].shape
        if values:
            raise UserError(
                f'{path}: label map has {values[0]} values for each pixel, expected one, the number of its class: '
                'convert its colours'
            )
        if size is not None and (height, width) != tuple(size):
            self.refuse(path, f'is {width}x{height}, its image {size[1]}x{size[0]}')
            return None
        return loaded

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.load!r}, skip_corrupt={self.skip_corrupt})'
