"""Search for the weight of a method's terms, by successive halving over epochs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any

from kd_plugins.distillation.schedule import Schedule
from kd_plugins.errors import UserError
from kd_plugins.registry import check_arguments
from kd_plugins.studies.run import Run

# The seed of a search's runs is larger than its students' by this: no run in a table is one that the search has chosen.
SEARCH_SEED = 2000


@dataclass(eq=False)
class Search:
    """Search for the weight of a method's terms on one network and one kind of training data.

    All weights train to the first of ``epochs``, on the schedule of the whole training; the better half, rounded up,
    goes on to the next, and so on; the best of the last round is the weight that is found. The score is the study's
    metric on the images held out of all training. A weight whose loss is not finite is left out. All of this follows
    from what the runs have left in their folders, so that a search that was stopped goes on.

    Attributes:
        metric: Name of the metric, the larger the better.
        epochs: Epoch at which each round ends.
        names: Names of the terms that get the weight.
        default: Weight that they have without a search; the largest where it changes during training.
        runs: Run by weight.

    References:
        1. Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS
           2016, algorithm 1.
    """

    metric: str
    epochs: list[int]
    names: list[str]
    default: float
    runs: dict[float, Run] = field(default_factory=dict)

    def weigh(
        self, config: dict[str, Any], weight: float, terms: Sequence[Mapping[str, Any]] | None = None
    ) -> list[dict[str, Any]]:
        """Give the terms in a run's config, which are in its last hook, a weight; return them as they were.

        Args:
            config: The run's.
            weight: Largest value of the terms' weight.
            terms: The terms as the study has them, where the config's have another weight already.
        """
        hook = config['custom_hooks'][-1]
        given = list(hook['terms'] if terms is None else terms)
        hook['terms'] = with_weight(given, self.names, weight)
        return given

    @property
    def sizes(self) -> list[int]:
        """Number of weights in each round, if none is left out."""
        return [-(-len(self.runs) // 2**index) for index in range(len(self.epochs))]

    @property
    def cost(self) -> int:
        """Number of epochs that it trains, if no weight is left out."""
        steps = [end - start for start, end in zip([0, *self.epochs], self.epochs, strict=False)]
        return sum(size * step for size, step in zip(self.sizes, steps, strict=True))

    @property
    def rounds(self) -> list[dict[float, float | None]]:
        """The rounds so far: the score of each weight, None before it has one, ``-inf`` where its loss diverged."""
        rounds: list[dict[float, float | None]] = []
        left = list(self.runs)
        for epoch, size in zip(self.epochs, [*self.sizes[1:], 1], strict=True):
            rounds.append({weight: self.score(self.runs[weight], epoch) for weight in left})
            left = _ranked(rounds[-1])[:size]
            if None in rounds[-1].values() or len(left) < 2:
                break
        return rounds

    def advance(self) -> list[Run]:
        """Let the runs that the present round is waiting for train up to its end; return them."""
        rounds = self.rounds
        due = [self.runs[weight] for weight, score in rounds[-1].items() if score is None]
        for run in due:
            run.until = self.epochs[len(rounds) - 1]
        return due

    @property
    def best(self) -> float | None:
        """The weight that is found; None before the end, and where every weight diverged."""
        last = self.rounds[-1]
        return None if None in last.values() else next(iter(_ranked(last)), None)

    @property
    def diverged(self) -> bool:
        """Whether no weight is left."""
        last = self.rounds[-1]
        return None not in last.values() and not _ranked(last)

    def score(self, run: Run, epoch: int | None) -> float | None:
        """Return a run's metric at the end of a round; None before it, ``-inf`` where its loss diverged."""
        # Rather than result.json, which a later round replaces.
        scores = [line[self.metric] for line in run.scalars if self.metric in line and line.get('step') == epoch]
        if scores:
            return scores[-1] if isfinite(scores[-1]) else -inf
        return -inf if run.diverged else None


def _ranked(scores: Mapping[float, float | None]) -> list[float]:
    """Return the weights that did not diverge, from the best on; of equal ones, that which was listed first leads."""
    finite = {weight: score for weight, score in scores.items() if score is not None and score > -inf}
    return sorted(finite, key=lambda weight: -finite[weight])


def check_search(where: str, method: Mapping[str, Any], validation: Any) -> None:
    """Check the ``search`` of a method, where it has one.

    Raises:
        UserError: It is not valid.
    """
    if 'search' not in method:
        return
    search, example = method['search'], 'search=dict(weight=[0.3, 1.0, 3.0])'
    if not isinstance(search, Mapping) or 'weight' not in search:
        raise UserError(f'{where}: search is {search!r}, expected the weights to choose from, as {example}')
    if wrong := set(search) - {'weight', 'epochs', 'terms'}:
        raise UserError(f"{where}: search has no option '{min(wrong)}'; options are epochs, terms, weight")
    if not method.get('terms'):
        raise UserError(f'{where} has search, but no terms whose weight it could choose: give it terms, or no search')
    weights, epochs, names = search['weight'], search.get('epochs'), search.get('terms')
    if (
        not isinstance(weights, (list, tuple))
        or not all(type(x) in (int, float) and isfinite(x) and x >= 0 for x in weights)
        or len({f'{x:g}' for x in weights}) < max(len(weights), 2)
    ):
        raise UserError(
            f'{where}: the weight of search is {weights!r}, expected at least two different numbers, none below 0, as '
            f'{example}'
        )
    if epochs is not None:
        if (
            not isinstance(epochs, (list, tuple))
            or not epochs
            or not all(type(x) is int and x > 0 for x in epochs)
            or list(epochs) != sorted(set(epochs))
        ):
            raise UserError(
                f'{where}: the epochs of search are {epochs!r}, expected whole numbers that rise, as [10, 20]; '
                'left out, the last round ends with the training'
            )
        if len(epochs) > (most := _most_rounds(len(weights))):
            raise UserError(
                f'{where}: the epochs of search are {list(epochs)}, but of {len(weights)} weights one is left after '
                f'{most} round(s) of halving: give at most {most} epochs, or more weights'
            )
    if names is not None and (not isinstance(names, (list, tuple)) or not names):
        raise UserError(f"{where}: the terms of search are {names!r}, expected names of terms, as ['kd']")
    if not validation:
        raise UserError(
            f'{where} has search, which scores on images held out of all training, never on the test set: give the '
            'study validation=dict(size=5000)'
        )


def _most_rounds(count: int) -> int:
    return (count - 1).bit_length()


def rounds_of(where: str, count: int, given: Sequence[int] | None, whole: Any) -> list[int]:
    """Return the epochs at which the rounds of a search end: those given, or, from the end on, each half the next.

    Args:
        where: What is searched, for messages.
        count: Number of weights.
        given: Epochs that the study gives.
        whole: Epochs of the whole training.

    Raises:
        UserError: The training is no number of epochs, or ends before the last round.
    """
    if not isinstance(whole, int):
        raise UserError(
            f'{where}: search halves by epochs, but the training has no train_cfg.max_epochs: give a weight'
        )
    if given is None:
        return sorted({max(whole // 2**index, 1) for index in range(_most_rounds(count))})
    if given[-1] > whole:
        raise UserError(f'{where}: the epochs of search are {list(given)}, but the training ends after {whole}')
    return list(given)


def searched_terms(where: str, terms: Iterable[Mapping[str, Any]], given: Sequence[str] | None) -> dict[str, float]:
    """Return the names of the terms that a search gives its weight, and the weights that they have.

    Raises:
        UserError: There is no such term, or there are several and none is named.
    """
    known = {term['name']: max(_values(term['weight'])) if 'weight' in term else 1.0 for term in terms}
    if given is None and len(known) > 1:
        raise UserError(
            f'{where}: search has one weight, and the method the terms {", ".join(known)}: name those that get it, as '
            f'search=dict(weight=[...], terms={list(known)[-1:]})'
        )
    if wrong := [name for name in given or () if name not in known]:
        raise UserError(f"{where}: search names the term '{wrong[0]}', but the method has {', '.join(known)}")
    found = {name: known[name] for name in given or known}
    if flat := [
        term['name'] for term in terms if isinstance(term.get('weight'), Mapping) and not found.get(term['name'], 1)
    ]:
        raise UserError(f"{where}: the weight of the term '{flat[0]}' is 0 at all times, which no search can scale")
    return found


def with_weight(terms: Iterable[Mapping[str, Any]], names: Iterable[str], weight: float) -> list[dict[str, Any]]:
    """Return terms of which those with a name have another weight; one that changes in time keeps its course.

    The largest value of such a weight becomes ``weight``.
    """
    return [
        dict(term, weight=_scaled(term.get('weight', 1.0), weight)) if term['name'] in names else dict(term)
        for term in terms
    ]


def _scaled(given: Any, weight: float) -> Any:
    if not isinstance(given, Mapping):
        return weight
    largest = max(_values(given))
    return dict(given, value=[weight * value / largest for value in given['value']])


def _values(weight: Any) -> list[float]:
    if not isinstance(weight, Mapping):
        return [weight]
    check_arguments('the weight of a term', Schedule, weight)
    return Schedule(**weight).value
