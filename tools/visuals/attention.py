"""Where in the image the activations of teacher and students are strong."""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor
from torch.linalg import vecdot
from torch.nn.functional import interpolate

from kd_plugins.errors import UserError
from kd_plugins.functional import attention_map, matched_attention

from . import networks as nets
from .networks import Images

MOST = 24  # rows of a picture


def enlarge(maps: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Return maps (N, H, W), interpolated linearly to the height and width of the images."""
    return interpolate(maps[:, None], size=size, mode='bilinear', align_corners=False)[:, 0].numpy()


def draw_attention(
    images: Images, maps: Sequence[np.ndarray], cosines: Sequence[np.ndarray], names: Sequence[str], about: str
) -> Figure:
    """Draw a row for each image: the image, then the maps of teacher and students, each up to its own maximum."""
    rows, columns = len(images.pixels), 1 + len(maps)
    ratio = images.pixels[0].shape[0] / images.pixels[0].shape[1]
    side, gap, left, head, below = 1.25, 0.14, 0.15, 0.75, 0.26
    width = max(4.6, left + columns * (side + gap))
    height = head + rows * (side * ratio + below)
    figure = Figure((width, height), dpi=150)
    figure.text(left / width, 1 - 0.12 / height, about, va='top', fontsize=8)
    for i, pixels in enumerate(images.pixels):
        class_ = images.labels[i]
        cells = [
            (pixels, '' if class_ is None else nets.cut(images.name(class_), 18)),
            *((x[i], '' if c is None else f'cosine {c[i]:.2f}') for x, c in zip(maps, [None, *cosines], strict=True)),
        ]
        for j, (cell, label) in enumerate(cells):
            x = (left + j * (side + gap)) / width
            y = (height - head - (i + 1) * (side * ratio + below) + below) / height
            axes = figure.add_axes((x, y, side / width, side * ratio / height))
            colours: dict[str, Any] = dict(cmap='viridis', vmin=0, vmax=max(float(cell.max()), 1e-12)) if j else {}
            axes.imshow(cell, **colours)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.set_xlabel(label, fontsize=7, labelpad=2)
            if not i:
                axes.set_title(nets.cut(names[j], 17), fontsize=8.5, pad=4)
    return figure


def attention(args: argparse.Namespace) -> None:
    """Draw where in the images the activations of teacher and students are strong."""
    nets.check_options(args)
    if args.images > MOST:
        raise UserError(f'--images: expected at most {MOST} rows in a picture, got {args.images}')
    loader = nets.test_set(args.student[0][0])
    rows = nets.draw_rows(loader.dataset, args.images, args.seed)
    images, teacher, students = nets.images_and_features(args, loader, rows)
    nets.check_maps([teacher, *students])
    shapes = {x.shape[:2] for x in images.pixels}
    if len(shapes) > 1:
        raise UserError(f'the images are of {len(shapes)} sizes: let the test pipeline make them one size')
    maps = [enlarge(attention_map(x.features), *shapes) for x in (teacher, *students)]
    cosines = {x.name: vecdot(*matched_attention(x.features, teacher.features)).numpy() for x in students}
    about = (
        f'Attention at {nets.tap_names(args)}: squares summed over the channels,\n'
        "dark 0, bright the maximum of the map;  cosine: with the teacher's map"
    )
    figure = draw_attention(images, maps, list(cosines.values()), ['input', 'teacher', *cosines], about)
    nets.save(figure, args.out, ', '.join(f'mean cosine of {name} {x.mean():.3f}' for name, x in cosines.items()))
