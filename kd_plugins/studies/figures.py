"""Figures of a study: accuracy against noise and imbalance, the course of training, gains over the baseline."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_plugins.studies.data import data_options
from kd_plugins.studies.plan import Study
from kd_plugins.studies.results import Gain, Result, centre_of, shown
from kd_plugins.studies.run import Run

# The axis of a data option: its key, label and file, and the position of clean data.
_AXES = {
    'label_noise': ('rate', 'rate of label noise, σ', 'noise.png', 0.0),
    'imbalance': ('gamma', 'exponent of class imbalance, γ', 'imbalance.png', math.inf),
}
_CURVES, _GAINS = 'curves.png', 'gains.png'


def position(options: Mapping[str, Any], name: str) -> float | None:
    """Return the position of a condition on the axis of a data option; clean data have noise of rate 0, or balance."""
    if not options:
        return _AXES[name][3]
    return options[name][_AXES[name][0]] if list(options) == [name] else None


def curves(study: Study, run: Run) -> tuple[dict[int, float], dict[int, float]]:
    """Return a run's metric on the test set and its training accuracy, by epoch, as the study's tables show them.

    Training accuracy, the last value logged in each epoch, is logged where the head has ``cal_acc=True``, which does
    not change training. It is the epoch's mean where the log computes it (``curves`` in
    configs/studies/_base_/poster.py), else one batch's. Where several networks learn together it is that of the
    student, number 0.
    """
    metric = study.options['metric']
    test: dict[int, float] = {}
    train: dict[int, float] = {}
    for line in run.scalars:
        if metric in line:
            test[line['step']] = shown(study, line[metric])
        elif 'epoch' in line:
            train.update(
                (line['epoch'], 100 - value if study.options['error'] else value)
                for key, value in line.items()
                if key.endswith(('accuracy_top-1', 'accuracy_top-1_0'))
            )
    return test, train


def figures(study: Study, results: Mapping[Run, Result], found: Sequence[Gain]) -> Iterator[Path]:
    """Draw the figures of a study's finished runs and gains into its folder; curves of runs scored more than once.

    Figures of an earlier call are removed.
    """
    for name in (_CURVES, _GAINS, *(name for _, _, name, _ in _AXES.values())):
        (study.root / name).unlink(missing_ok=True)
    try:
        import matplotlib
    except ImportError:
        print('figures need matplotlib: pip install matplotlib')
        return
    matplotlib.use('Agg')
    from matplotlib import pyplot

    colours = dict(zip(study.options['methods'], pyplot.get_cmap('tab20')(range(20)), strict=False))
    for name in _AXES:
        yield from _against(study, results, name, colours, pyplot)
    yield from _curves(study, results, colours, pyplot)
    yield from _gains(study, found, colours, pyplot)


def _against(
    study: Study,
    results: Mapping[Run, Result],
    name: str,
    colours: Mapping[str, Any],
    pyplot: Any,
) -> Iterator[Path]:
    positions: dict[str, float] = {}
    for condition, options in study.options['corruptions'].items():
        if (x := position(data_options(options), name)) is not None and x not in positions.values():
            positions[condition] = x  # of conditions that differ only in the schedule, the first
    centre = centre_of(study.options['average'])
    values: dict[tuple[str, str, float], list[float]] = {}
    for run, result in results.items():
        if run.part == 'student' and run.corruption in positions:
            values.setdefault((run.network, run.method, positions[run.corruption]), []).append(result.last)
    found = sorted({x for _, _, x in values})
    if len(found) < 2:
        return
    # Balanced data have an infinite gamma: they follow the last one at an equal distance.
    gap = (found[-2] - found[0]) / max(len(found) - 2, 1) or 1.0
    ticks = {x: x if math.isfinite(x) else found[-2] + gap for x in found}
    networks = [x for x in study.options['networks'] if x in {network for network, _, _ in values}]
    figure, axes = pyplot.subplots(1, len(networks), figsize=(5 * len(networks) + 2, 4), squeeze=False)
    for axis, network in zip(axes[0], networks, strict=True):
        for method in study.options['methods']:
            points = sorted((x, last) for (n, m, x), last in values.items() if (n, m) == (network, method))
            if points:
                axis.errorbar(
                    [ticks[x] for x, _ in points],
                    [centre(y) for _, y in points],
                    [statistics.stdev(y) if len(y) > 1 else 0 for _, y in points],
                    label=method,
                    color=colours.get(method),
                    marker='o',
                    markersize=3,
                    capsize=2,
                )
        axis.set(title=network, xlabel=_AXES[name][1], ylabel=_label(study))
        axis.set_xticks(list(ticks.values()), [f'{x:g}' if math.isfinite(x) else 'balanced' for x in ticks])
    yield _save(study, figure, axes[0][-1], _AXES[name][2], pyplot)


def _curves(
    study: Study,
    results: Mapping[Run, Result],
    colours: Mapping[str, Any],
    pyplot: Any,
) -> Iterator[Path]:
    centre = centre_of(study.options['average'])
    found = {run: curves(study, run) for run in results if run.part == 'student'}
    found = {run: both for run, both in found.items() if len(both[0]) > 1}  # one score is no curve
    if not found:
        return
    networks, corruptions = (
        [x for x in study.options[part] if x in {getattr(run, attribute) for run in found}]
        for part, attribute in (('networks', 'network'), ('corruptions', 'corruption'))
    )
    figure, axes = pyplot.subplots(
        len(corruptions), len(networks), figsize=(5 * len(networks) + 2, 3.5 * len(corruptions)), squeeze=False
    )
    for row, corruption in zip(axes, corruptions, strict=True):
        for axis, network in zip(row, networks, strict=True):
            drawn = set()
            for method in study.options['methods']:
                seeds = [
                    both
                    for run, both in found.items()
                    if (run.network, run.corruption, run.method) == (network, corruption, method)
                ]
                for part, style in ((0, 'o-'), (1, '--')):
                    curve: dict[int, list[float]] = {}
                    for one in seeds:
                        for epoch, value in one[part].items():
                            curve.setdefault(epoch, []).append(value)
                    if curve:
                        epochs = sorted(curve)
                        drawn.add(part)
                        axis.plot(
                            epochs,
                            [centre(curve[x]) for x in epochs],
                            style,
                            markersize=3,
                            color=colours.get(method),
                            label=None if part else method,
                        )
            axis.set(
                title=f'{network}, {corruption}',
                ylabel=_label(study),
                xlabel='epoch (solid: test, dashed: training)' if 1 in drawn else 'epoch',
            )
            axis.xaxis.get_major_locator().set_params(integer=True)
    yield _save(study, figure, axes[0][-1], _CURVES, pyplot)


def _gains(study: Study, found: Sequence[Gain], colours: Mapping[str, Any], pyplot: Any) -> Iterator[Path]:
    if not found:
        return
    networks, corruptions = (
        [x for x in study.options[part] if x in {getattr(gain, attribute) for gain in found}]
        for part, attribute in (('networks', 'network'), ('corruptions', 'corruption'))
    )
    methods = [x for x in study.options['methods'] if x in {gain.method for gain in found}]
    figure, axes = pyplot.subplots(
        len(networks),
        len(corruptions),
        figsize=(4 * len(corruptions) + 1, (0.25 * len(methods) + 1) * len(networks)),
        squeeze=False,
        sharey=True,
    )
    for row, network in zip(axes, networks, strict=True):
        for axis, corruption in zip(row, corruptions, strict=True):
            for gain in found:
                if (gain.network, gain.corruption) == (network, corruption):
                    axis.barh(
                        methods.index(gain.method),
                        gain.mean,
                        xerr=gain.spread,
                        capsize=2,
                        color=colours.get(gain.method),
                    )
            axis.axvline(0, color='grey', linewidth=0.8)
            axis.set(title=f'{network}, {corruption}', xlabel='gain over the baseline (points)')
            axis.set_yticks(range(len(methods)), methods)
    axes[0][0].invert_yaxis()  # shared by all: the first method is on top
    yield _save(study, figure, axes[0][-1], _GAINS, pyplot)


def _label(study: Study) -> str:
    return 'error (%)' if study.options['error'] else f'{study.options["metric"]} (%)'


def _save(study: Study, figure: Any, last: Any, name: str, pyplot: Any) -> Path:
    handles: dict[str, Any] = {}
    for axis in figure.axes:
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if handles:
        last.legend(handles.values(), handles.keys(), bbox_to_anchor=(1.02, 1), loc='upper left', fontsize=8)
    figure.tight_layout()
    path = study.root / name
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path
