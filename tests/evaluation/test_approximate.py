"""Approximate search against the exact one."""

import numpy as np
import pytest

pytest.importorskip('faiss', reason='approximate search is by faiss')

from kd_plugins.errors import UserError
from kd_plugins.evaluation import ReIDFeatures, rank_approximately, rank_matches


@pytest.fixture
def features() -> ReIDFeatures:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 50, 1000)
    x = (rng.standard_normal((50, 24))[ids] + 0.8 * rng.standard_normal((1000, 24))).astype(np.float32)
    cams = rng.integers(1, 5, 1000)
    return ReIDFeatures(x[:80], ids[:80], cams[:80], x[80:], ids[80:], cams[80:])


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_a_search_that_finds_all_is_the_exact_one(features: ReIDFeatures, metric: str) -> None:
    found, recall = rank_approximately(features, 'hnsw', k=2000, metric=metric)
    exact = rank_matches(features, metric)
    assert recall > 0.999
    seen = np.isfinite(found.ranks)
    assert seen.mean() > 0.999
    assert (found.ranks == exact.ranks)[seen].mean() > 0.99  # what is missed moves the rest up by one


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
@pytest.mark.parametrize('index', ['ivf', 'hnsw'])
def test_what_is_not_found_ranks_at_infinity_and_recall_tells_how_much(
    features: ReIDFeatures, index: str, metric: str
) -> None:
    found, recall = rank_approximately(features, index, k=10, metric=metric)
    exact = rank_matches(features, metric)
    assert (found.queries.tolist(), found.counts.tolist(), found.unmatched) == (
        exact.queries.tolist(), exact.counts.tolist(), exact.unmatched)
    assert 0.3 < recall <= 1
    assert found.ranks[np.isfinite(found.ranks)].max() <= 10
    expected = [np.where(own <= 10, own, np.inf) for own in np.split(exact.ranks, exact.counts.cumsum()[:-1])]
    own = np.split(found.ranks, found.counts.cumsum()[:-1])
    alike = np.mean([np.array_equal(a, b) for a, b in zip(own, expected, strict=True)])
    assert alike >= 0.9 if index == 'hnsw' else alike > 0.1
    scores = found.summary()
    assert scores['mAP'] <= exact.summary()['mAP'] + 0.05
    assert np.isfinite(list(scores.values())).all()


def test_recall_is_that_of_the_first_k_after_what_is_left_out(features: ReIDFeatures) -> None:
    # A query's own camera holds 60 copies of it; the index must find what stands behind them.
    copies = np.repeat(features.query_features[:1], 60, 0)
    more = ReIDFeatures(
        features.query_features, features.query_ids, features.query_cams,
        np.concatenate([features.gallery_features, copies]),
        np.append(features.gallery_ids, np.full(60, features.query_ids[0])),
        np.append(features.gallery_cams, np.full(60, features.query_cams[0])))
    found, recall = rank_approximately(more, 'hnsw', k=5)
    plain, expected = rank_approximately(features, 'hnsw', k=5)
    assert recall == pytest.approx(expected, abs=0.02)
    assert (found.ranks[:plain.counts[0]] == plain.ranks[:plain.counts[0]]).all()


def test_mistakes_are_told(features: ReIDFeatures) -> None:
    with pytest.raises(UserError, match="expected 'ivf' or 'hnsw' and k of at least 1, got 'lsh' and 5"):
        rank_approximately(features, 'lsh', 5)
    with pytest.raises(UserError, match='k of at least 1'):
        rank_approximately(features, 'ivf', 0)
