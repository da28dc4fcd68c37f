"""The course of runs: losses, their shares, and the metric."""

import argparse
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from kd_plugins.errors import UserError
from kd_plugins.utils.names import nearest
from kd_plugins.utils.scalars import lines_of, main_metric

from . import networks as nets

# Okabe and Ito's colours, the dark ones first, and a marker for each, which tell apart what a grey print does not.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000', '#8C6D31')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '*')
OTHERS, GREY = 'others', '#999999'
MOST = 7  # losses with a colour of their own

Curve = dict[float, float]  # values by iteration or epoch


class Course(NamedTuple):
    """What a run has logged: losses and shares by iteration; metrics by epoch, or by iteration in a run without."""

    name: str
    losses: dict[str, Curve]
    shares: dict[str, Curve]
    metrics: dict[str, Curve]
    by_epoch: bool


def names_of(folders: Sequence[Path]) -> list[str]:
    """Return the paths of runs without the folders that all of them are in."""
    paths = [Path(os.path.abspath(folder)) for folder in folders]
    for path, folder in zip(paths, folders, strict=True):
        if paths.count(path) > 1:
            raise UserError(f'{folder}: is given twice: give each run once')
    common = os.path.commonpath([path.parent for path in paths])
    return [str(path.relative_to(common)) for path in paths]


def sessions_of(folder: Path) -> list[list[dict[str, float]]]:
    """Return the lines of each session of a run, which may have been resumed.

    Raises:
        UserError: There are none of training.
    """
    files = next(filter(None, (sorted(folder.glob(f'{x}scalars.json')) for x in ('*/vis_data/', 'vis_data/', ''))), [])
    sessions = [lines for lines in map(lines_of, files) if any('iter' in line for line in lines)]
    if not sessions:
        raise UserError(
            f'{folder}: expected the folder of a run, with scalars of training in */vis_data/scalars.json, which '
            "mmengine's LocalVisBackend writes"
        )
    return sessions


def course_of(folder: Path, name: str) -> Course:
    """Return the course of a run; a session takes the place of what earlier ones logged after its first iteration."""
    training: list[dict[str, float]] = []
    scores: list[dict[str, float]] = []
    by_epoch = True
    for lines in sessions_of(folder):
        own = [line for line in lines if 'iter' in line]
        by_epoch = 'epoch' in own[0]
        anew = by_epoch and own[0]['epoch'] == 1  # another run in the same folder, maybe with other intervals
        training = [line for line in training if line['iter'] < own[0]['iter'] and not anew] + own
        start = own[0]['epoch' if by_epoch else 'iter']
        scores = [line for line in scores if line['step'] < start] + [x for x in lines if 'iter' not in x]
    training = [{key.removeprefix('train/'): value for key, value in line.items()} for line in training]
    losses = {key for line in training for key in line if 'loss' in key and '/' not in key}
    parts = [key for key in _keys(training) if key in losses - {'loss'}]
    finite = [line for line in training if all(math.isfinite(line.get(key, 0.0)) for key in losses)]
    # mmengine's sum of all losses, or the task's own loss where that has the same name.
    is_sum = bool(parts) and all(
        abs(line['loss'] - sum(line.get(key, 0.0) for key in parts))
        <= 1e-3 * sum(abs(line.get(key, 0.0)) for key in parts)
        for line in finite
        if 'loss' in line
    )
    shown = ['loss', *parts] if 'loss' in losses and not is_sum else parts
    # A run with one loss has it under the name that the task's has beside terms.
    curves = {'task' if key == 'loss' else key.removeprefix('loss_'): _curve(training, key, 'iter') for key in shown}
    watched = {key.removeprefix('loss_share/'): key for key in _keys(training) if key.startswith('loss_share/')}
    shares = {short: _curve(training, key, 'iter') for short, key in watched.items()} or _shares(curves)
    metrics = [x.removeprefix('val/') for x in _keys(scores)]
    scores = [{key.removeprefix('val/'): value for key, value in line.items()} for line in scores]
    found = {key: _curve(scores, key, 'step') for key in metrics if key not in ('step', 'time', 'data_time')}
    return Course(name, curves, shares, found, by_epoch)


def _keys(lines: Sequence[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(key for line in lines for key in line))


def _curve(lines: Sequence[Mapping[str, float]], key: str, by: str) -> Curve:
    return {line[by]: line[key] for line in lines if key in line and math.isfinite(line[key])}


def _shares(losses: Mapping[str, Curve]) -> dict[str, Curve]:
    """Return what part of the sum each loss is."""
    steps = sorted({x for curve in losses.values() for x in curve})
    totals = {x: sum(abs(curve.get(x, 0.0)) for curve in losses.values()) or 1.0 for x in steps}
    return {name: {x: curve.get(x, 0.0) / totals[x] for x in steps} for name, curve in losses.items()}


def grouped(courses: Sequence[Course]) -> tuple[list[Course], dict[str, str]]:
    """Return runs and the colours of losses; of many losses, those of few runs, and small ones, become one."""
    names = list(dict.fromkeys(name for course in courses for name in (*course.losses, *course.shares)))
    if len(names) > MOST:

        def weight(name: str) -> tuple[int, float]:
            found = [course.losses[name] for course in courses if course.losses.get(name)]
            return len(found), max((abs(y) for curve in found for y in curve.values()), default=0.0)

        kept = sorted(names, key=weight, reverse=True)[: MOST - 1]
        names = [name for name in names if name in kept]
        courses = [
            course._replace(losses=_merged(course.losses, kept), shares=_merged(course.shares, kept))
            for course in courses
        ]
    return list(courses), dict(zip(names, COLOURS, strict=False)) | {OTHERS: GREY}


def _merged(curves: Mapping[str, Curve], kept: Sequence[str]) -> dict[str, Curve]:
    others: Curve = {}
    for name, curve in curves.items():
        if name not in kept:
            others = {x: others.get(x, 0.0) + curve.get(x, 0.0) for x in {*others, *curve}}
    found = {name: curve for name, curve in curves.items() if name in kept}
    return found | ({OTHERS: dict(sorted(others.items()))} if others else {})


def metric_of(courses: Sequence[Course], asked: str | None) -> str | None:
    """Return the name of the metric to draw: the one asked for, or the main one of those that most runs have.

    Raises:
        UserError: No run has the one asked for.
    """
    found = [name for course in courses for name in course.metrics]
    if asked is None:
        most = max(map(found.count, found), default=0)
        return main_metric([x for x in dict.fromkeys(found) if found.count(x) == most]) if found else None
    if asked not in found:
        raise UserError(f"--metric: no run has scored '{asked}'; {nearest(asked, dict.fromkeys(found))}")
    return asked


def draw_curves(courses: Sequence[Course], metric: str | None) -> Figure:
    """Draw a column of losses and shares for each run, and the metric of all runs below."""
    courses, colours = grouped(courses)
    has_shares = any(len(course.shares) > 1 for course in courses)
    rows = {'losses': 2.4, **({'shares': 1.5} if has_shares else {}), **({'metric': 2.4} if metric else {})}
    width = max(7.0, 1.9 + 2.6 * len(courses))
    figure = Figure((width, 0.4 + sum(rows.values()) * 1.12), dpi=150, layout='constrained')
    grid = figure.add_gridspec(len(rows), len(courses), height_ratios=list(rows.values()))
    first: dict[str, Axes] = {}
    for column, course in enumerate(courses):
        for row, part in enumerate(['losses', 'shares'][: 1 + has_shares]):
            axes = figure.add_subplot(grid[row, column], sharey=first.get(part))
            first.setdefault(part, axes)
            (_draw_losses if part == 'losses' else _draw_shares)(axes, course, colours)
            _tidy(axes, labelled=not column)
            if not row:
                axes.set_title(_end(course.name, 30), fontsize=9)
            if row == has_shares:
                axes.set_xlabel('iteration', fontsize=8)
            if not column:
                axes.set_ylabel('weighted loss' if part == 'losses' else 'share of the sum', fontsize=8)
    values = [y for course in courses for curve in course.losses.values() for y in curve.values()]
    if values and min(values) > 0 and max(values) > 30 * min(values):
        first['losses'].set_yscale('log')
    names = [name for name in colours if any(name in (*x.losses, *x.shares) for x in courses)]
    handles = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        if label in names
    }
    # Of the task's share there may be no loss, and so no line.
    shown = [handles.get(name) or Patch(color=colours[name]) for name in names]
    figure.axes[len(first) * (len(courses) - 1)].legend(
        shown, names, loc='upper left', bbox_to_anchor=(1.02, 1.0), fontsize=8, frameon=False
    )
    if metric:
        _draw_metric(figure.add_subplot(grid[-1, :]), courses, metric)
    return figure


def _end(text: str, length: int) -> str:
    """Return the end of a path, where its name is."""
    return text if len(text) <= length else f'…{text[1 - length :]}'


def _tidy(axes: Axes, labelled: bool = True, ticks: int = 5) -> None:
    axes.grid(color='#dddddd', linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    axes.tick_params(labelsize=7, labelleft=labelled)
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))


def _draw_losses(axes: Axes, course: Course, colours: Mapping[str, str]) -> None:
    for name, curve in course.losses.items():
        marker = MARKERS[list(colours).index(name) % len(MARKERS)]
        every = max(1, len(curve) // 6)
        axes.plot(
            *_points(curve),
            color=colours[name],
            label=name,
            linewidth=1.3,
            marker=marker,
            markersize=4,
            markevery=every,
        )


def _draw_shares(axes: Axes, course: Course, colours: Mapping[str, str]) -> None:
    steps = sorted({x for curve in course.shares.values() for x in curve})
    if len(steps) > 1:
        bands = [[abs(curve.get(x, 0.0)) for x in steps] for curve in course.shares.values()]
        axes.stackplot(
            steps, bands, colors=[colours[x] for x in course.shares], alpha=0.85, edgecolor='white', linewidth=0.5
        )
    axes.set_ylim(0, 1)


def _draw_metric(axes: Axes, courses: Sequence[Course], metric: str) -> None:
    for i, course in enumerate(courses):
        if curve := course.metrics.get(metric):
            every = max(1, len(curve) // 10)
            axes.plot(
                *_points(curve),
                color=COLOURS[i],
                marker=MARKERS[i],
                markersize=4,
                markevery=every,
                linewidth=1.3,
                label=_end(course.name, 30),
            )
    _tidy(axes, ticks=12)
    axes.set_ylabel(metric, fontsize=8)
    axes.set_xlabel('epoch' if all(x.by_epoch for x in courses if metric in x.metrics) else 'iteration', fontsize=8)
    axes.legend(loc='upper left', bbox_to_anchor=(1.005, 1.0), fontsize=8, frameon=False)


def _points(curve: Curve) -> tuple[list[float], list[float]]:
    return list(curve), list(curve.values())


def summaries(courses: Sequence[Course], metric: str | None) -> Iterator[str]:
    """Yield the last value of each run's metric, or the last of its losses."""
    for course in courses:
        curve = course.metrics.get(metric or '')
        if curve:
            unit = 'epoch' if course.by_epoch else 'iteration'
            yield f'{course.name} {metric} {curve[max(curve)]:.4g} at {unit} {max(curve):.0f}'
        else:
            last = ', '.join(f'{name} {curve[max(curve)]:.4g}' for name, curve in course.losses.items() if curve)
            yield f'{course.name} {last}'


def curves(args: argparse.Namespace) -> None:
    """Draw the losses of runs, their shares of the sum, and the metric, side by side."""
    nets.check_out(args.out)
    if len(args.folders) > len(COLOURS):
        raise UserError(f'expected at most {len(COLOURS)} runs in a picture, got {len(args.folders)}')
    names = names_of(args.folders)
    courses = [course_of(folder, name) for folder, name in zip(args.folders, names, strict=True)]
    metric = metric_of(courses, args.metric)
    nets.save(draw_curves(courses, metric), args.out, '; '.join(summaries(courses, metric)))
