"""Small data sets that are drawn, so that the whole chain runs on a machine without any data.

Eight shapes in random colour, size, rotation and texture lie on a cluttered background, hide each other and reach over
the border. The same seed and sizes give the same bytes on one machine.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np

from kd_plugins.errors import UserError

CLASSES = ('circle', 'square', 'triangle', 'star', 'cross', 'ring', 'crescent', 'arrow')

_MARK = 'drawn.json'
_VERSION = 1  # raised when the same parameters give other pixels
_SCALE = 4  # shapes are rasterised at this multiple, then averaged, for smooth edges


def _radial(radii: tuple[float, ...], start: float = 0.0) -> np.ndarray:
    """Return a polygon (N, 2) whose vertices stand at equal angles, at the given distances in turn."""
    angle = start + np.arange(len(radii)) * 2 * np.pi / len(radii)
    return np.stack([np.cos(angle), np.sin(angle)], 1) * np.asarray(radii)[:, None]


# Outlines in a unit circle; the second polygon of a pair is cut out of the first.
_OUTLINES: dict[str, tuple[np.ndarray, ...]] = {
    'circle': (_radial((0.85,) * 48),),
    'square': (_radial((1.0,) * 4, np.pi / 4),),
    'triangle': (_radial((1.0,) * 3),),
    'star': (_radial((1.0, 0.42) * 5),),
    'cross': (
        np.array(
            [
                (-1, -0.3),
                (-0.3, -0.3),
                (-0.3, -1),
                (0.3, -1),
                (0.3, -0.3),
                (1, -0.3),
                (1, 0.3),
                (0.3, 0.3),
                (0.3, 1),
                (-0.3, 1),
                (-0.3, 0.3),
                (-1, 0.3),
            ]
        ),
    ),
    'ring': (_radial((0.9,) * 48), _radial((0.5,) * 48)),
    'crescent': (_radial((0.95,) * 48), np.add(_radial((0.8,) * 48), (0.45, 0))),
    'arrow': (np.array([(1, 0), (0.2, 0.75), (0.2, 0.28), (-1, 0.28), (-1, -0.28), (0.2, -0.28), (0.2, -0.75)]),),
}


def _mask(
    name: str, centre: np.ndarray, radius: float, aspect: float, angle: float, size: tuple[int, int]
) -> np.ndarray:
    """Return the coverage (H, W) of one shape, in [0, 1]."""
    width, height = size
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    canvas = np.zeros((height * _SCALE, width * _SCALE), np.uint8)
    for outline, value in zip(_OUTLINES[name], (255, 0), strict=False):
        points = (outline * (1, aspect)) @ turn.T * radius + centre
        cv2.fillPoly(canvas, [np.round(points * _SCALE).astype(np.int32)], value)
    return cv2.resize(canvas, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _texture(rng: np.random.Generator, size: tuple[int, int], colour: np.ndarray, contrast: float) -> np.ndarray:
    """Return an image (H, W, 3): a colour, shaded by soft spots or by stripes of the given contrast, in [0, 1]."""
    width, height = size
    if rng.random() < 0.5:
        cells = rng.integers(2, 9)
        amount = cv2.resize(rng.random((cells, cells)), size, interpolation=cv2.INTER_CUBIC)
    else:
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        angle, period = rng.uniform(0, np.pi), rng.uniform(4, 24)
        amount = 0.5 + 0.5 * np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
    other = rng.uniform(0, 255, 3)
    return colour + contrast * (other - colour) * np.clip(amount, 0, 1)[..., None]


def _background(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Return a greyish image (H, W, 3) strewn with lines and irregular fragments that belong to no class."""
    grey = rng.uniform(60, 200)

    def dull() -> np.ndarray:
        return grey + rng.uniform(-45, 45, 3)

    image = np.ascontiguousarray(_texture(rng, size, dull(), rng.uniform(0.1, 0.5)), dtype=np.float32)
    extent = np.array(size)
    for _ in range(rng.integers(2, 8)):
        colour = tuple(dull() + rng.uniform(-40, 40))
        start = rng.uniform(0, 1, 2) * extent
        if rng.random() < 0.5:
            end = start + rng.uniform(-0.4, 0.4, 2) * extent
            cv2.line(image, start.astype(int).tolist(), end.astype(int).tolist(), colour, int(rng.integers(1, 3)))
        else:
            spread = rng.uniform(-0.12, 0.12, (5, 2)) * min(size)
            cv2.fillPoly(image, [(start + spread).astype(np.int32)], colour)
    return image


def _finish(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Add the light and the noise of a camera; return the image (H, W, 3) as uint8."""
    image = image * rng.uniform(0.6, 1.2) + rng.normal(0, rng.uniform(1, 10), image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def _colour(rng: np.random.Generator, name: str) -> np.ndarray:
    """Return a strong colour (3,), more often than not near the hue that is usual for the class."""
    hue = (CLASSES.index(name) / len(CLASSES) + rng.normal(0, 0.1)) % 1
    pixel = np.array([[[hue * 180, rng.uniform(120, 255), rng.uniform(100, 255)]]], np.uint8)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0].astype(float)


def _paint(rng: np.random.Generator, image: np.ndarray, name: str, mask: np.ndarray) -> np.ndarray:
    """Return the image with a freshly textured shape over it."""
    texture = _texture(rng, mask.shape[::-1], _colour(rng, name), rng.uniform(0, 0.5))
    return image + (texture - image) * (mask * rng.uniform(0.8, 1))[..., None]


def _shape(
    rng: np.random.Generator, name: str, size: tuple[int, int], radius: tuple[float, float], margin: float
) -> np.ndarray:
    """Return the mask of a shape somewhere on the image; its radius lies in a range given in shorter sides."""
    centre = rng.uniform(margin, 1 - margin, 2) * size
    return _mask(name, centre, rng.uniform(*radius) * min(size), rng.uniform(0.75, 1), rng.normal(0, 0.3), size)


def _scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, list[dict], np.ndarray]:
    """Return an image (H, W, 3), its objects, and the class of each pixel (H, W): 0 is the background, i + 1 class i.

    Objects come back to front, each with name, bndbox, truncated and difficult.
    """
    image = _background(rng, size)
    names = [CLASSES[i] for i in rng.integers(len(CLASSES), size=rng.integers(1, 5))]
    masks = [_shape(rng, name, size, (0.1, 0.28), 0.1) for name in names]
    for name, mask in zip(names, masks, strict=True):
        image = _paint(rng, image, name, mask)
    objects, labels = [], np.zeros(size[::-1], np.uint8)
    for k, (name, mask) in enumerate(zip(names, masks, strict=True)):
        inside = mask > 0.5
        labels[inside] = CLASSES.index(name) + 1
        hidden = np.logical_or.reduce([other > 0.5 for other in masks[k + 1 :]], initial=False) & inside
        y, x = np.nonzero(inside)
        left, top, right, bottom = (int(v) for v in (x.min(), y.min(), x.max(), y.max()))
        objects.append(
            {
                'name': name,
                'truncated': int(left == 0 or top == 0 or right == size[0] - 1 or bottom == size[1] - 1),
                'difficult': int(hidden.sum() > 0.6 * inside.sum()),
                # VOC counts pixels from 1.
                'bndbox': {'xmin': left + 1, 'ymin': top + 1, 'xmax': right + 1, 'ymax': bottom + 1},
            }
        )
    return _finish(rng, image), objects, labels


def _element(tag: str, value: object) -> ElementTree.Element:
    """Return nested dicts as XML; a list repeats its tag in the parent."""
    element = ElementTree.Element(tag)
    if not isinstance(value, dict):
        element.text = str(value)
        return element
    for key, child in value.items():
        element.extend(_element(key, item) for item in (child if isinstance(child, list) else [child]))
    return element


def _annotation(filename: str, size: tuple[int, int], objects: list[dict]) -> str:
    """Return the text of a VOC annotation, with the fields of the official files in their order."""
    tree = _element(
        'annotation',
        {
            'folder': 'VOC2007',
            'filename': filename,
            'source': {'database': 'drawn', 'annotation': 'PASCAL VOC2007', 'image': 'drawn', 'flickrid': 0},
            'owner': {'flickrid': 0, 'name': 'drawn'},
            'size': {'width': size[0], 'height': size[1], 'depth': 3},
            'segmented': 0,
            'object': [
                {
                    'name': o['name'],
                    'pose': 'Unspecified',
                    'truncated': o['truncated'],
                    'difficult': o['difficult'],
                    'bndbox': o['bndbox'],
                }
                for o in objects
            ],
        },
    )
    ElementTree.indent(tree, '\t')
    return ElementTree.tostring(tree, encoding='unicode') + '\n'


def _write_image(path: Path, image: np.ndarray) -> None:
    path.write_bytes(cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())


def _is_drawn(root: Path, parameters: dict) -> bool:
    """Return whether the folder holds the whole set; raise where it holds another one, or something else."""
    if not root.exists():
        return False
    mark = root / _MARK
    if not mark.is_file():
        raise UserError(f'{root}: exists, but is not a drawn data set; name another root or move the folder away')
    if json.loads(mark.read_text()) != parameters:  # another run may be reading it
        raise UserError(f'{root}: was drawn with other options or by another version; name another root or remove it')
    return True


def _draw_into(root: str | Path, parameters: dict, draw: Callable[[Path], None]) -> Path:
    """Let ``draw`` fill a folder beside ``root`` and rename it to ``root`` when all of it is there."""
    root = Path(root)
    parameters = json.loads(json.dumps(parameters | {'version': _VERSION}))
    if _is_drawn(root, parameters):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f'.{root.name}-', dir=root.parent))
    try:
        draw(folder)
        (folder / _MARK).write_text(json.dumps(parameters))
        folder.chmod(0o755)
        try:
            folder.rename(root)
        except OSError:  # another process may have drawn it in the meantime
            if not _is_drawn(root, parameters):
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return root


def draw_voc(
    root: str | Path,
    train: int = 64,
    val: int = 600,
    test: int = 200,
    size: tuple[int, int] = (96, 96),
    seed: int = 0,
    masks: bool = False,
) -> Path:
    """Draw a detection set in PASCAL VOC's layout; do nothing where it is already there.

    Writes ``<root>/VOC2007/{JPEGImages,Annotations,ImageSets/Main}``. An image has 1 to 4 objects of :data:`CLASSES`;
    boxes count pixels from 1 and include both ends; ``difficult`` marks objects hidden to more than 60 %. With
    ``masks``, ``SegmentationClass`` has the class of each pixel: 0 is the background, i + 1 is class i.

    Args:
        root: The folder to make, e.g. ``data/drawn/VOCdevkit``.
        train: Number of images in the split ``train``.
        val: Number of images in ``val``; ``trainval`` is both.
        test: Number of images in ``test``.
        size: Width and height in pixels.
        seed: Image i depends on the seed, i and the size only.
        masks: Whether to write the classes of pixels, too.

    Returns:
        The root.

    Raises:
        UserError: The root exists and is something else, or was drawn with other options.

    References:
        1. Everingham et al., The PASCAL Visual Object Classes Challenge 2007, development kit.
    """
    images = {'train': train, 'val': val, 'test': test}

    def draw(folder: Path) -> None:
        base = folder / 'VOC2007'
        lists = base / 'ImageSets' / 'Main'
        classes = base / 'SegmentationClass'
        for path in (base / 'JPEGImages', base / 'Annotations', lists, *([classes] if masks else [])):
            path.mkdir(parents=True)
        numbers = iter(range(1, sum(images.values()) + 1))
        members = {split: [f'{next(numbers):06d}' for _ in range(count)] for split, count in images.items()}
        members['trainval'] = members['train'] + members['val']
        for split, names in members.items():
            (lists / f'{split}.txt').write_text(''.join(f'{name}\n' for name in names))
        for name in members['trainval'] + members['test']:
            image, objects, labels = _scene(np.random.default_rng([seed, int(name)]), size)
            _write_image(base / 'JPEGImages' / f'{name}.jpg', image)
            (base / 'Annotations' / f'{name}.xml').write_text(_annotation(f'{name}.jpg', size, objects))
            if masks:
                cv2.imwrite(str(classes / f'{name}.png'), labels)

    parameters = {'kind': 'voc', 'images': images, 'size': size, 'seed': seed}
    return _draw_into(root, parameters | ({'masks': True} if masks else {}), draw)


def draw_classification(root: str | Path, train: int = 600, val: int = 50, size: int = 48, seed: int = 0) -> Path:
    """Draw a classification set of single shapes as ``<root>/{train,val}/<class>/<number>.jpg``.

    Args:
        root: The folder to make.
        train: Number of images a class has in ``train``.
        val: Number of images a class has in ``val``.
        size: Side of the square images in pixels.
        seed: An image depends on the seed, its split, class, number and the size only.

    Returns:
        The root.

    Raises:
        UserError: The root exists and is something else, or was drawn with other options.
    """
    images = {'train': train, 'val': val}

    def draw(folder: Path) -> None:
        for s, (split, count) in enumerate(images.items()):
            for c, name in enumerate(CLASSES):
                (folder / split / name).mkdir(parents=True)
                for i in range(count):
                    rng = np.random.default_rng([seed, s, c, i])
                    image = _background(rng, (size, size))
                    image = _paint(rng, image, name, _shape(rng, name, (size, size), (0.2, 0.45), 0.3))
                    if rng.random() < 0.3:  # something in front
                        other = CLASSES[rng.integers(len(CLASSES))]
                        image = _paint(rng, image, other, _shape(rng, other, (size, size), (0.1, 0.15), 0.1))
                    _write_image(folder / split / name / f'{i:05d}.jpg', _finish(rng, image))

    return _draw_into(root, {'kind': 'classification', 'images': images, 'size': size, 'seed': seed}, draw)
