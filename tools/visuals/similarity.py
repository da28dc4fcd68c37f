"""Similarities that the networks see between the images of a batch."""

import argparse
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from kd_plugins.errors import UserError
from kd_plugins.functional import similarity_matrix, sp_loss

from . import networks as nets


def draw_sorted_rows(labels: np.ndarray, count: int, classes: int, seed: int) -> np.ndarray:
    """Return the rows of ``count`` images, as equally many of each class as possible, sorted by class.

    Of more than ``classes`` classes, that many are taken, evenly spread over all.
    """
    known = np.unique(labels)
    known = known[np.linspace(0, len(known) - 1, min(classes, len(known))).round().astype(int)]
    rng = np.random.default_rng(seed)
    queues = [list(rng.permutation(np.flatnonzero(labels == label))) for label in known]
    taken: list[list[int]] = [[] for _ in queues]
    while sum(map(len, taken)) < count and any(queues):
        for queue, rows in zip(queues, taken, strict=True):
            if queue and sum(map(len, taken)) < count:
                rows.append(queue.pop())
    drawn = np.array([i for rows in taken for i in sorted(rows)])
    if len(drawn) < count:
        raise UserError(f'--images: expected at most the {len(drawn)} test images of {len(known)} classes, got {count}')
    return drawn


def draw_matrices(
    matrices: Sequence[np.ndarray], titles: Sequence[str], groups: Sequence[tuple[str, int]], about: str
) -> Figure:
    """Draw the matrices side by side in one range of colours, with a line between the classes."""
    columns = min(4, len(matrices))
    rows = -(-len(matrices) // columns)
    side, gap, left, right, above, head, foot = 2.9, 0.12, 1.2, 0.85, 0.55, 0.35, 0.15  # inches
    width, height = left + columns * (side + gap) + right, head + rows * (above + side) + foot
    figure = Figure((width, height), dpi=150)
    figure.text(0.5, 1 - 0.1 / height, about, va='top', ha='center', fontsize=9)
    # An image is most similar to itself: with the diagonal, few colours would be left for the rest.
    others = [x[~np.eye(len(x), dtype=bool)] for x in matrices]
    low, high = min(x.min() for x in others), max(np.quantile(x, 0.995) for x in others)
    sizes = np.array([size for _, size in groups])
    ends = sizes.cumsum() - 0.5
    for number, (matrix, title) in enumerate(zip(matrices, titles, strict=True)):
        row, column = divmod(number, columns)
        axes = figure.add_axes(
            (
                (left + column * (side + gap)) / width,
                (height - head - (row + 1) * (above + side)) / height,
                side / width,
                side / height,
            )
        )
        shown = axes.imshow(matrix, cmap='viridis', vmin=low, vmax=high, interpolation='nearest')
        for end in ends[:-1]:
            axes.axhline(end, color='white', linewidth=0.4)
            axes.axvline(end, color='white', linewidth=0.4)
        axes.set_title(title, fontsize=10, pad=5)
        axes.set(xticks=[], yticks=[])
        if not column:
            axes.set_yticks(ends - sizes / 2, [nets.cut(name, 18) for name, _ in groups], fontsize=7)
            axes.tick_params(length=0)
    bar = figure.add_axes(((width - right + 0.1) / width, foot / height, 0.14 / width, side / height))
    figure.colorbar(shown, cax=bar).ax.tick_params(labelsize=7)
    return figure


def similarity(args: argparse.Namespace) -> None:
    """Draw the similarities that teacher and students see between the images of a batch, sorted by class."""
    nets.check_options(args)
    if args.classes < 2:
        raise UserError(f'--classes: expected at least 2, got {args.classes}')
    loader = nets.test_set(args.student[0][0])
    labels = nets.labels_of(loader.dataset)
    rows = draw_sorted_rows(labels, args.images, args.classes, args.seed)
    images, teacher, students = nets.images_and_features(args, loader, rows)
    shown, sizes = np.unique(labels[rows], return_counts=True)
    losses = {x.name: sp_loss(x.features, teacher.features).item() for x in students}
    figure = draw_matrices(
        [similarity_matrix(x.features).numpy() for x in (teacher, *students)],
        ['teacher', *(f'{nets.cut(name, 30)}\nSP loss {value:.2e}' for name, value in losses.items())],
        [(images.name(label), size) for label, size in zip(shown, sizes, strict=True)],
        f'{nets.tap_names(args)}: similarities of {args.images} images, by class on both axes; rows of L2 norm 1',
    )
    nets.save(figure, args.out, ', '.join(f'SP loss of {name} {value:.3e}' for name, value in losses.items()))
