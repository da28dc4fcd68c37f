"""The channels of teacher and students in one t-SNE embedding."""

import argparse
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch.nn.functional import adaptive_avg_pool2d

from kd_plugins.errors import UserError
from kd_plugins.functional import nst_loss
from kd_plugins.functional.gram import unit

from . import networks as nets
from .networks import Network

PERPLEXITY = 30


def channel_points(networks: Sequence[Network]) -> list[np.ndarray]:
    """Return a point for each channel of each network, (C, N H W): where on the images it is active.

    The channel's map of every image is scaled to L2 norm 1, as in the loss; the point is these patterns, one after
    another, divided by the root of N. So the squared distance of two channels is the mean over the images, and
    the squared MMD of two networks' points under the linear kernel is the linear NST loss. All maps are pooled to the
    smallest height and width among the networks, as the loss pools a pair. Channels that are never active are left out.
    """
    height, width = (min(x.features.shape[axis] for x in networks) for axis in (2, 3))
    found = []
    for network in networks:
        maps = network.features
        pooled = maps if maps.shape[2:] == (height, width) else adaptive_avg_pool2d(maps, (height, width))
        patterns = unit(pooled.flatten(2))
        points = patterns.transpose(0, 1).flatten(1) / len(maps) ** 0.5
        found.append(points[points.any(1)].numpy())
        if len(found[-1]) < 2:
            raise UserError(f'{network.name}: at this tap fewer than 2 channels are active: tap another module')
    return found


def embed(points: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """Embed several sets of points together by t-SNE: (n, 2) for each set of n."""
    joint = np.concatenate(points)
    perplexity = min(PERPLEXITY, (len(joint) - 1) / 3)
    try:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise UserError(
            "tsne needs scikit-learn: pip install scikit-learn, or this package's extra pictures"
        ) from error
    with threadpool_limits(1):  # several threads sum in another order each time
        embedded = TSNE(init='pca', perplexity=perplexity, random_state=seed).fit_transform(joint)
    return np.split(embedded, np.cumsum([len(x) for x in points])[:-1])


def draw_embedding(teacher: np.ndarray, students: Sequence[np.ndarray], titles: Sequence[str], about: str) -> Figure:
    """Draw a panel for each student: its points and, at the same positions in all panels, the teacher's."""
    columns = min(3, len(students))
    rows = -(-len(students) // columns)
    side, gap, margin, above, head, foot = 3.3, 0.15, 0.15, 0.55, 0.5, 0.45  # inches
    width = max(5.4, 2 * margin + columns * (side + gap) - gap)
    height = head + rows * (above + side) + foot
    figure = Figure((width, height), dpi=150)
    figure.text(0.5, 1 - 0.1 / height, about, va='top', ha='center', fontsize=9)
    left = (width - columns * (side + gap) + gap) / 2
    everything = np.concatenate([teacher, *students])
    border = 0.04 * np.ptp(everything, axis=0)
    low, high = everything.min(0) - border, everything.max(0) + border
    for number, (points, title) in enumerate(zip(students, titles, strict=True)):
        row, column = divmod(number, columns)
        axes = figure.add_axes(
            (
                (left + column * (side + gap)) / width,
                (height - head - (row + 1) * (above + side)) / height,
                side / width,
                side / height,
            )
        )
        for xy, name, colour, marker in (
            (teacher, 'teacher', nets.BLUE, 'o'),
            (points, 'student', nets.VERMILLION, '^'),
        ):
            axes.scatter(xy[:, 0], xy[:, 1], s=20, c=colour, marker=marker, alpha=0.7, linewidths=0, label=name)
        axes.set_title(title, fontsize=10, pad=5)
        axes.set(xticks=[], yticks=[], xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        loc='lower center',
        ncols=2,
        fontsize=9,
        markerscale=1.5,
        frameon=False,
    )
    return figure


def tsne(args: argparse.Namespace) -> None:
    """Draw the channels of teacher and students in one joint t-SNE embedding, with their squared MMD."""
    nets.check_options(args)
    loader = nets.test_set(args.student[0][0])
    rows = nets.draw_rows(loader.dataset, args.images, args.seed)
    _, teacher, students = nets.images_and_features(args, loader, rows)
    nets.check_maps([teacher, *students])
    distances = {x.name: nst_loss(x.features, teacher.features).item() for x in students}
    points = embed(channel_points([teacher, *students]), args.seed)
    titles = [f'{nets.cut(name, 36)}\nMMD² to the teacher {value:#.3g}' for name, value in distances.items()]
    about = (
        f'{nets.tap_names(args)}: channels by their patterns on {args.images} images, one joint t-SNE\n'
        'MMD²: polynomial kernel of degree 2, mean over the images'
    )
    figure = draw_embedding(points[0], points[1:], titles, about)
    nets.save(figure, args.out, ', '.join(f'MMD² of {name} {value:#.4g}' for name, value in distances.items()))
