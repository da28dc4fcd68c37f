import numpy as np
import pytest
import torch

pytest.importorskip('faiss', reason='re-ranking is by faiss')

from kd_plugins.errors import UserError
from kd_plugins.evaluation import reranking
from kd_plugins.evaluation.reranking import KReciprocal, expand_queries

pytestmark = pytest.mark.usefixtures('device')  # beside a GPU, too


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_loops(query, gallery, k1=20, k2=6, lambda_value=0.3, metric='cosine'):
    """Re-rank with dense float64 matrices, as the definition reads."""
    x = np.concatenate((query, gallery)).astype(np.float64)
    if metric == 'cosine':
        x = unit(x)
    everyone = range(len(x))
    distance = np.array([[((a - b) ** 2).sum() for b in x] for a in x])
    distance /= distance.max(1, keepdims=True)
    ranking = distance.argsort(1)

    def reciprocal(i, k):
        return {j for j in ranking[i, : k + 1] if i in ranking[j, : k + 1]}

    encoding = np.zeros_like(distance)
    for i in everyone:
        own = reciprocal(i, k1)
        theirs = [reciprocal(c, int(np.around(k1 / 2))) for c in own]
        support = sorted(own.union(*(s for s in theirs if len(s & own) > 2 / 3 * len(s))))
        encoding[i, support] = np.exp(-distance[i, support])
        encoding[i] /= encoding[i].sum()
    if k2 != 1:
        encoding = np.array([encoding[ranking[i, :k2]].mean(0) for i in everyone])
    least = np.array([[np.minimum(a, b).sum() for b in encoding] for a in encoding])
    final = (1 - lambda_value) * (1 - least / (2 - least)) + lambda_value * distance
    return final[: len(query), len(query) :]


def features(queries=12, gallery=60, dimensions=16, identities=0, seed=0):
    random = np.random.default_rng(seed)
    x = random.standard_normal((queries + gallery, dimensions))
    if identities:
        x = 0.5 * x + random.standard_normal((identities, dimensions))[np.arange(len(x)) % identities]
    x = x.astype(np.float32)
    return x[:queries], x[queries:]


def reranked(*args, block=256, **options):
    parts = list(KReciprocal(*args, **options).rows(block))
    assert all(distances.dtype == np.float32 for _, distances in parts)
    assert np.array_equal(np.concatenate([np.r_[part] for part, _ in parts]), np.arange(len(args[0])))
    return np.concatenate([distances for _, distances in parts])


def check(query, gallery, **options):
    np.testing.assert_allclose(reranked(query, gallery, **options), by_loops(query, gallery, **options), atol=1e-5)


@pytest.mark.parametrize('identities', [0, 3, 7], ids=lambda x: f'{x}-identities')
@pytest.mark.parametrize(
    ('k1', 'k2', 'lambda_value'),
    [(20, 6, 0.3), (20, 1, 0.3), (5, 3, 0), (7, 2, 0.2), (20, 6, 1), (1, 1, 0.5), (3, 12, 0.1)],
)
@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_values(identities, k1, k2, lambda_value, metric):
    check(*features(identities=identities), k1=k1, k2=k2, lambda_value=lambda_value, metric=metric)


def test_euclidean_takes_the_features_as_they_are():
    query, gallery = features(identities=5)
    scaled = [x * np.arange(1, len(x) + 1, dtype=np.float32)[:, None] for x in (query, gallery)]
    check(*scaled, metric='euclidean')
    np.testing.assert_allclose(reranked(*scaled), reranked(query, gallery), atol=1e-5)
    # Far from the origin, where |x|^2 + |y|^2 - 2 x'y alone would lose every digit.
    far = [x + np.float32(1000) for x in (query, gallery)]
    check(*far, metric='euclidean')


@pytest.mark.parametrize('sizes', [(1, 1), (1, 30), (30, 1), (4, 9), (9, 12)])
def test_few_items(sizes):
    check(*features(*sizes))


@pytest.mark.parametrize('kept', [0, 2**28])
def test_neither_blocks_nor_the_product_change_anything(monkeypatch, kept):
    query, gallery = features(identities=6)
    expected = by_loops(query, gallery)
    monkeypatch.setattr(reranking, '_TILE', 10)
    monkeypatch.setattr(reranking, '_KEPT', kept)
    assert (KReciprocal(query, gallery)._kept is None) == (kept == 0)
    np.testing.assert_allclose(reranked(query, gallery, block=5), expected, atol=1e-5)
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: False)
    np.testing.assert_allclose(reranked(query, gallery, block=1), expected, atol=1e-5)
    fortran = np.asfortranarray(query, np.float64), np.asfortranarray(gallery, np.float64)
    np.testing.assert_allclose(reranked(*fortran), expected, atol=1e-5)


def test_inference_mode_changes_nothing():
    query, gallery = np.random.default_rng(0).standard_normal((2, 30, 8)).astype(np.float32)
    (_, expected), *_ = KReciprocal(query, gallery, k1=5, k2=2).rows()
    with torch.inference_mode():
        (_, found), *_ = KReciprocal(query, gallery, k1=5, k2=2).rows()
    np.testing.assert_array_equal(found, expected)


def test_the_features_stay_as_they_were():
    query, gallery = features()
    before = query.copy(), gallery.copy()
    reranked(query, gallery)
    expand_queries(query, gallery)
    assert np.array_equal(query, before[0])
    assert np.array_equal(gallery, before[1])


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_duplicates(metric):
    # More of the same than any list holds.
    query, gallery = features(5, 70, identities=3)
    gallery[:40] = query[0]
    distances = reranked(query, gallery, metric=metric)
    assert np.isfinite(distances).all()
    assert distances[0, :40].max() < distances[0, 40:].min()
    assert reranked(query, gallery, metric=metric, lambda_value=1).min() >= 0
    neighbours, *_ = reranking._neighbours(np.concatenate((query, gallery)), 21, len(query))
    assert np.array_equal(neighbours[:, 0], np.arange(75))
    same = np.ones((30, 4), np.float32)
    assert np.isfinite(reranked(same[:4], same, metric=metric)).all()
    assert np.isfinite(reranked(0 * same[:4], 0 * same, metric=metric)).all()


@pytest.mark.parametrize(('n', 'alpha'), [(10, 3.0), (1, 1.0), (4, 0.0), (99, 2.5)])
def test_expanded_queries(n, alpha):
    query, gallery = features(identities=6)
    result = expand_queries(query, gallery, n, alpha)
    assert result.dtype == np.float32
    for row, q in zip(result, unit(query), strict=True):
        nearest = sorted(unit(gallery), key=lambda g: -(q @ g))[:n]
        np.testing.assert_allclose(row, unit(q + sum(max(q @ g, 0) ** alpha * g for g in nearest)), atol=1e-5)


def test_wrong_use():
    query, gallery = features()
    for options, message in [
        ({'k1': 0}, 're-ranking: expected k1 of at least 1, got 0'),
        ({'k2': 0}, 'expected k2 of at least 1, got 0'),
        ({'lambda_value': 1.1}, 'expected lambda_value from 0 to 1, got 1.1'),
        ({'lambda_value': -0.1}, 'expected lambda_value from 0 to 1, got -0.1'),
        ({'metric': 'l1'}, "expected metric 'cosine' or 'euclidean', got 'l1'"),
    ]:
        with pytest.raises(UserError, match=message):
            KReciprocal(query, gallery, **options)
    with pytest.raises(UserError, match='expected n of at least 1, got 0'):
        expand_queries(query, gallery, n=0)
    with pytest.raises(UserError, match='expected alpha of at least 0, got -1'):
        expand_queries(query, gallery, alpha=-1)
    for function in KReciprocal, expand_queries:
        with pytest.raises(UserError, match=r'of the same D, neither empty, got \(12, 16\) and \(60, 15\)'):
            function(query, gallery[:, 1:])
        with pytest.raises(UserError, match=r'neither empty, got \(0, 16\) and \(60, 16\)'):
            function(query[:0], gallery)
        with pytest.raises(UserError, match='expected finite features, got NaN or infinity'):
            function(query, gallery * np.float32('nan'))
