"""Results of the runs of a study."""

import itertools
import logging
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite, nan

from mmengine.logging import print_log
from scipy import stats

from kd_plugins.errors import UserError
from kd_plugins.studies.data import held_out
from kd_plugins.studies.plan import Study
from kd_plugins.studies.run import Run


@dataclass(frozen=True)
class Result:
    """The metric of a finished run on the test set, in percent; or the error, where the study shows that.

    Attributes:
        last: Value after the last epoch.
        best: Value after the best epoch, chosen on the held-out part where the study has one (None where the run has
            none), else by this value itself; only for the CSV.
        seconds: Duration of the run.
    """

    last: float
    best: float | None
    seconds: float


def centre_of(average: str) -> Callable[[Iterable[float]], float]:
    """Return the function for a study's ``average``, 'mean' or 'median'."""
    return statistics.median if average == 'median' else statistics.fmean


def metrics_of(study: Study, run: Run) -> dict[str, float]:
    """Return a finished run's metrics.

    Raises:
        UserError: The study's metric is not among them.
    """
    metrics = {key: value for key, value in (run.metrics or {}).items() if isinstance(value, (int, float))}
    if study.options['metric'] not in metrics:
        raise UserError(
            f"{run.folder / 'result.json'} has no number for the metric '{study.options['metric']}': give "
            f'the study one of {", ".join(metrics)}'
        )
    return metrics


def result_of(study: Study, run: Run) -> Result | None:
    """Return a run's result, None where it has none yet, or one that is not finite.

    Raises:
        UserError: The study's metric is not in its result.
    """
    if not run.finished:
        return None
    metric = study.options['metric']
    metrics = metrics_of(study, run)
    if not isfinite(metrics[metric]):
        print_log(
            f"{run.folder / 'result.json'}: '{metric}' is {metrics[metric]}; the tables leave the run out",
            'current',
            logging.WARNING,
        )
        return None
    chosen_by = held_out(metric) if study.options['validation'] else metric
    lines = [
        line
        for line in (*run.scalars, metrics)
        if isfinite(line.get(metric, nan)) and isfinite(line.get(chosen_by, nan))
    ]
    best = max(lines, key=lambda line: line[chosen_by])[metric] if lines else None
    seconds = run.seconds
    return Result(shown(study, metrics[metric]), None if best is None else shown(study, best), seconds)


def shown(study: Study, value: float) -> float:
    """Return a value of the study's metric as its tables show it: in percent, and as an error where they show that."""
    percent = 100 * value if study.options['fraction'] else value
    return 100 - percent if study.options['error'] else percent


@dataclass(frozen=True)
class Gain:
    """A method's gain over the baseline, seed by seed.

    Attributes:
        values: Method minus baseline for each seed that both have; for errors baseline minus method: more is better.
    """

    network: str
    corruption: str
    method: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean of the differences."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Sample standard deviation of the differences; 0 for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    @property
    def p(self) -> float | None:
        """Two-sided p of Student's t-test on the pairs; None where it has none (one seed, or equal differences)."""
        return float(stats.ttest_1samp(self.values, 0).pvalue) if self.spread else None


def gains(study: Study, results: Mapping[Run, Result]) -> list[Gain]:
    """Return the gain of every method that shares a seed with the study's baseline, paired by seed."""
    baseline = study.options['baseline'] or next(iter(study.options['methods']))
    sign = -1 if study.options['error'] else 1
    last = {
        (run.network, run.corruption, run.method, run.seed): result.last
        for run, result in results.items()
        if run.part == 'student'
    }
    found = []
    for network, corruption, method in itertools.product(
        *(study.options[part] for part in ('networks', 'corruptions', 'methods'))
    ):
        values = tuple(
            # Rounded, so that differences that are equal are so in binary too.
            round(sign * (last[network, corruption, method, seed] - last[network, corruption, baseline, seed]), 9)
            for seed in study.options['seeds']
            if {(network, corruption, name, seed) for name in (method, baseline)} <= set(last)
        )
        if method != baseline and values:
            found.append(Gain(network, corruption, method, values))
    return found
