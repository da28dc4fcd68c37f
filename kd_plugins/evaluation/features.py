"""Embeddings of a query and a gallery set, in memory or memory-mapped."""

import math
import tokenize
import zipfile
import zlib
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from kd_plugins.errors import UserError
from kd_plugins.utils.files import written_whole
from kd_plugins.utils.names import nearest

BLOCK = 2**25  # numbers of the gallery that are processed together, 128 MiB in float32


def in_range(*features: np.ndarray, largest: float | None = None) -> tuple[np.ndarray, ...]:
    """Scale arrays by one power of two where the squares of their numbers could leave the range of float32.

    That changes no angle, and no order of distances. The largest number is then between 1/2 and 1; arrays whose
    largest number is between 1e-3 and 1e12 are returned as they are. ``largest`` is that number, where it is known.
    """
    if largest is None:
        largest = max(abs(float(x)) for array in features for x in (array.min(), array.max()))
    exponent = math.frexp(largest)[1]
    if -10 < exponent <= 40:
        return features
    return tuple(np.ldexp(array, -exponent) for array in features)


@dataclass(frozen=True)
class ReIDFeatures:
    """The embeddings of a query and a gallery set, and whose image each is, from which camera.

    Very large and very small features are scaled by a power of two, see :func:`in_range`.

    Attributes:
        query_features: (Q, D) embeddings.
        query_ids: (Q,) identities; one below 1 has no match.
        query_cams: (Q,) cameras.
        gallery_features: (G, D) embeddings; may be memory-mapped.
        gallery_ids: (G,) identities; -1 is junk (ignored), 0 a distractor (stays in the gallery, never a match).
        gallery_cams: (G,) cameras.
        query_paths: (Q,) image files, for pictures.
        gallery_paths: (G,) image files.

    Raises:
        UserError: An array is empty, of a wrong shape or kind, or holds a number that is not finite (its row is
            named).

    Example:
        >>> import numpy as np
        >>> from kd_plugins.evaluation import ReIDFeatures
        >>> features = ReIDFeatures(
        ...     query_features=np.array([[1.0, 0.0]]),
        ...     query_ids=np.array([7]),
        ...     query_cams=np.array([1]),
        ...     gallery_features=np.array([[0.9, 0.1], [0.8, 0.1], [0.1, 0.9]]),
        ...     gallery_ids=np.array([7, 7, -1]),
        ...     gallery_cams=np.array([1, 2, 2]),
        ... )
        >>> features.without_junk().gallery_ids
        array([7, 7])
    """

    query_features: np.ndarray
    query_ids: np.ndarray
    query_cams: np.ndarray
    gallery_features: np.ndarray
    gallery_ids: np.ndarray
    gallery_cams: np.ndarray
    query_paths: np.ndarray | None = None
    gallery_paths: np.ndarray | None = None

    def __post_init__(self) -> None:
        largest = 0.0
        for side in ('query', 'gallery'):
            features = getattr(self, f'{side}_features')
            if features.ndim != 2 or features.dtype.kind not in 'fiu':
                raise UserError(
                    f'{side}_features: expected numbers of shape (items, dimensions), got {features.dtype} '
                    f'of shape {features.shape}'
                )
            if 0 in features.shape:
                raise UserError(f'{side}_features is empty, of shape {features.shape}: expected at least one item')
            for name in ('ids', 'cams', 'paths'):
                values = getattr(self, f'{side}_{name}')
                if values is None and name == 'paths':
                    continue
                if values.shape != features.shape[:1]:
                    raise UserError(
                        f'{side}_{name}: expected one for each of the {len(features)} rows of '
                        f'{side}_features, got shape {values.shape}'
                    )
                if name != 'paths' and values.dtype.kind not in 'iu':
                    raise UserError(f'{side}_{name}: expected integers, got {values.dtype}')
            step = max(1, BLOCK // features.shape[1])
            for start in range(0, len(features), step):
                block = features[start : start + step]
                ends = float(block.min()), float(block.max())  # both are NaN where one number is
                if not all(map(math.isfinite, ends)):
                    row = start + int(np.isfinite(block).all(axis=1).argmin())
                    raise UserError(
                        f'{side}_features: row {row} holds a number that is not finite; check what the model returns '
                        'for that image'
                    )
                largest = max(largest, *map(abs, ends))
        if self.query_features.shape[1] != self.gallery_features.shape[1]:
            raise UserError(
                f'query_features have {self.query_features.shape[1]} dimensions, gallery_features '
                f'{self.gallery_features.shape[1]}: both must come from one model'
            )
        scaled = in_range(self.query_features, self.gallery_features, largest=largest)
        for side, features in zip(('query', 'gallery'), scaled, strict=True):
            object.__setattr__(self, f'{side}_features', features)  # as dataclasses do it where they are frozen

    def without_junk(self) -> 'ReIDFeatures':
        """Return the features without the gallery's junk, for methods that use neighbours; a copy if there is any."""
        kept = self.gallery_ids != -1
        if kept.all():
            return self
        return replace(
            self,
            **{
                f'gallery_{name}': values[kept]
                for name in ('features', 'ids', 'cams', 'paths')
                if (values := getattr(self, f'gallery_{name}')) is not None
            },
        )


_NAMES = [field.name for field in fields(ReIDFeatures)]
_OPTIONAL = {'query_paths', 'gallery_paths'}


def load_features(path: str | Path) -> ReIDFeatures:
    """Read features from a file ``.npz``, or from a folder with one ``.npy`` for each array, which is memory-mapped.

    The arrays have the names of the attributes of :class:`ReIDFeatures`. ``path`` may also be any ``.npy`` file of the
    folder.

    Raises:
        UserError: The file is missing, damaged or pickled, or lacks an array; or as :class:`ReIDFeatures`.

    Example:
        >>> import numpy as np, tempfile
        >>> from kd_plugins.evaluation import ReIDFeatures, load_features, save_features
        >>> features, one = np.ones((1, 4)), np.ones(1, int)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_features(ReIDFeatures(features, one, one, features, one, one), f'{folder}/features.npz')
        ...     load_features(f'{folder}/features.npz').gallery_features
        array([[1., 1., 1., 1.]])
    """
    path = Path(path)
    if path.suffix == '.npy':
        path = path.parent
    if not path.exists():
        raise UserError(f'{path} does not exist: expected features as a file .npz or a folder of .npy files')
    try:
        if path.is_dir():
            files = {file.stem: file for file in sorted(path.glob('*.npy'))}
            names = [*files]
            found = {x: np.load(files[x], mmap_mode='r', allow_pickle=False) for x in names if x in _NAMES}
        else:
            with np.load(path, allow_pickle=False) as file:
                names = file.files
                found = {x: file[x] for x in names if x in _NAMES}  # another array may be of objects
    except (
        *(ValueError, OSError, EOFError, AttributeError, TypeError, SyntaxError),
        *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
    ) as error:
        raise UserError(
            f'{path} holds no readable arrays (damaged, pickled or of another format): expected a file '
            f'.npz or a folder of .npy files ({error})'
        ) from error
    for name in _NAMES:
        if name not in found and name not in _OPTIONAL:
            raise UserError(f"{path} lacks the array '{name}'; its {nearest(name, sorted(names))}")
    try:
        return ReIDFeatures(**{name: found[name] for name in _NAMES if name in found})
    except UserError as error:
        raise UserError(f'{path}: {error}') from error


def save_features(features: ReIDFeatures, path: str | Path) -> None:
    """Write a file ``.npz``, whole or not at all.

    Raises:
        UserError: The file cannot be written.
    """
    arrays = {name: value for name in _NAMES if (value := getattr(features, name)) is not None}
    with written_whole(path) as partial, open(partial, 'wb') as file:
        np.savez(file, **arrays)
