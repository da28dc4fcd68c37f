"""Approximate search against the exact one."""

from types import ModuleType

import numpy as np
import pytest
import torch

pytest.importorskip('faiss', reason='approximate search is by faiss')

from kd_plugins.errors import UserError
from kd_plugins.evaluation import ReIDFeatures, rank_approximately, rank_matches

pytestmark = pytest.mark.usefixtures('device')  # beside a GPU, too


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
def test_what_is_not_found_ranks_at_infinity_and_lowers_the_recall(
    features: ReIDFeatures, index: str, metric: str
) -> None:
    found, recall = rank_approximately(features, index, k=10, metric=metric)
    exact = rank_matches(features, metric)
    assert (found.queries.tolist(), found.counts.tolist(), found.unmatched) == (
        exact.queries.tolist(),
        exact.counts.tolist(),
        exact.unmatched,
    )
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
    # A query's own camera holds 60 copies of it; the index must find what is ranked after them.
    copies = np.repeat(features.query_features[:1], 60, 0)
    more = ReIDFeatures(
        features.query_features,
        features.query_ids,
        features.query_cams,
        np.concatenate([features.gallery_features, copies]),
        np.append(features.gallery_ids, np.full(60, features.query_ids[0])),
        np.append(features.gallery_cams, np.full(60, features.query_cams[0])),
    )
    found, recall = rank_approximately(more, 'hnsw', k=5)
    plain, expected = rank_approximately(features, 'hnsw', k=5)
    assert recall == pytest.approx(expected, abs=0.02)
    assert (found.ranks[: plain.counts[0]] == plain.ranks[: plain.counts[0]]).all()


def test_mistakes_are_reported(features: ReIDFeatures) -> None:
    with pytest.raises(UserError, match="expected 'ivf' or 'hnsw' and k of at least 1, got 'lsh' and 5"):
        rank_approximately(features, 'lsh', 5)
    with pytest.raises(UserError, match='k of at least 1'):
        rank_approximately(features, 'ivf', 0)
    with pytest.raises(UserError, match="metric: expected 'cosine' or 'euclidean', got 'l2'"):
        rank_approximately(features, 'hnsw', metric='l2')


def test_first_matches_are_those_of_an_exact_search_by_faiss(
    features: ReIDFeatures, device: torch.device, faiss: ModuleType
) -> None:
    query, gallery = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features.query_features, features.gallery_features)
    )
    if device.type == 'cpu':
        _, items = faiss.knn(query, gallery, len(gallery), faiss.METRIC_INNER_PRODUCT)
    elif faiss.get_num_gpus():
        _, items = faiss.knn_gpu(
            faiss.StandardGpuResources(), query, gallery, len(gallery), metric=faiss.METRIC_INNER_PRODUCT
        )
    else:
        pytest.skip('this faiss is built for no GPU, or finds none')
    exact = rank_matches(features, device=str(device))
    for row, rank in zip(exact.queries, exact.first_match(), strict=True):
        right = features.gallery_ids[items[row]] == features.query_ids[row]
        kept = ~right | (features.gallery_cams[items[row]] != features.query_cams[row])
        assert 1 + right[kept].argmax() == rank
