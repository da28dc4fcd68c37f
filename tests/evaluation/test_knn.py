"""Votes of nearest neighbours, compared with scikit-learn's, with loops, and where the answer is known."""

from collections import defaultdict

import numpy as np
import pytest

pytest.importorskip('faiss', reason='neighbours are found by faiss')

from kd_plugins.errors import UserError
from kd_plugins.evaluation import knn_accuracy


def _sets(seed: int = 0, noise: float = 1.2) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((5, 16))
    bank_labels, labels = rng.integers(0, 5, 200), rng.integers(0, 5, 83)
    bank, queries = (centres[x] + noise * rng.standard_normal((len(x), 16)) for x in (bank_labels, labels))
    return bank * rng.uniform(0.1, 10, (200, 1)), bank_labels, queries, labels


@pytest.mark.parametrize('temperature', [None, 0.07, 1.0])
@pytest.mark.parametrize('k', [1, 7, 20])
def test_equals_scikit_learn(k: int, temperature: float | None) -> None:
    neighbours = pytest.importorskip('sklearn.neighbors')
    weights = 'uniform' if temperature is None else lambda distance: np.exp(-distance / temperature)
    for seed in range(3):
        bank, bank_labels, queries, labels = _sets(seed)
        classifier = neighbours.KNeighborsClassifier(k, metric='cosine', weights=weights).fit(bank, bank_labels)
        expected = 100 * classifier.score(queries, labels)
        assert 30 < expected < 100
        assert knn_accuracy(bank, bank_labels, queries, labels, k, temperature) == pytest.approx(expected, abs=1e-9)


def test_equals_plain_loops() -> None:
    bank, bank_labels, queries, labels = _sets()
    right = 0
    for query, label in zip(queries, labels, strict=True):
        cosines = [float(x @ query / np.linalg.norm(x) / np.linalg.norm(query)) for x in bank]
        votes: dict[int, float] = defaultdict(float)
        for index in sorted(range(len(bank)), key=lambda i: -cosines[i])[:20]:
            votes[int(bank_labels[index])] += np.exp(cosines[index] / 0.07)
        right += max(votes, key=lambda x: votes[x]) == label
    assert knn_accuracy(bank, bank_labels, queries, labels) == pytest.approx(100 * right / len(labels), abs=1e-9)


def test_known_answers() -> None:
    axes = np.eye(4)
    labels = np.arange(4)
    assert knn_accuracy(axes, labels, 3 * axes, labels, k=1) == 100
    assert knn_accuracy(axes, labels, axes[::-1], labels, k=1) == 0
    # One near neighbour of label 1 against two far ones of label 0: the weights decide.
    bank, bank_labels = np.array([[1.0, 0.0], [0.2, 1.0], [0.2, 1.0]]), np.array([1, 0, 0])
    query = np.array([[1.0, 0.1]])
    assert knn_accuracy(bank, bank_labels, query, np.array([1]), k=3) == 100
    assert knn_accuracy(bank, bank_labels, query, np.array([0]), k=3, temperature=None) == 100


def test_more_neighbours_than_images_are_all_images() -> None:
    bank, bank_labels, queries, labels = _sets()
    commonest = np.bincount(bank_labels).argmax()
    expected = 100 * (labels == commonest).mean()
    assert knn_accuracy(bank, bank_labels, queries, labels, k=10_000, temperature=None) == pytest.approx(expected)


def test_extreme_lengths_and_small_temperatures_change_nothing() -> None:
    bank, bank_labels, queries, labels = _sets()
    nearest = knn_accuracy(bank, bank_labels, queries, labels, k=1)
    assert knn_accuracy(1e-30 * bank, bank_labels, 1e30 * queries, labels, k=1) == nearest
    assert knn_accuracy(bank, bank_labels, queries, labels, k=20, temperature=1e-5) == nearest
    assert knn_accuracy(0 * bank, bank_labels, queries, labels) <= 100


@pytest.mark.parametrize('options', [dict(k=0), dict(temperature=0.0), dict(temperature=-1.0)])
def test_an_option_out_of_range_is_named(options: dict) -> None:
    with pytest.raises(UserError, match=r'nearest neighbours: k=.*expected at least 1, and above 0 or None'):
        knn_accuracy(*_sets(), **options)


def test_a_feature_that_is_not_finite_is_refused() -> None:
    bank, bank_labels, queries, labels = _sets()
    queries[3, 2] = np.nan
    with pytest.raises(UserError, match='a feature is not finite'):
        knn_accuracy(bank, bank_labels, queries, labels)
