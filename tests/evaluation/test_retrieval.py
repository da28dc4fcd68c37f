"""Retrieval scores against a brute-force evaluation by plain loops in float64."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from kd_plugins import evaluation
from kd_plugins.errors import UserError
from kd_plugins.evaluation import ReIDFeatures, rank_matches, rank_rows, retrieval

pytestmark = pytest.mark.usefixtures('device')  # the products are taken on a GPU where there is one


def distance(a: np.ndarray, b: np.ndarray, metric: str) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    if metric == 'euclidean':
        return float(np.sqrt(((a - b) ** 2).sum()))
    return 1 - float((a * b).sum()) / max(float(np.sqrt((a * a).sum()) * np.sqrt((b * b).sum())), 1e-30)


def brute_force(features: ReIDFeatures, metric: str) -> tuple[list[list[int]], int]:
    """Rank the whole gallery for every query: by distance, wrong items first among equals."""
    ranks, unmatched = [], 0
    for query, identity, camera in zip(features.query_features, features.query_ids, features.query_cams, strict=True):
        items = []
        for item, other, cam in zip(
            features.gallery_features, features.gallery_ids, features.gallery_cams, strict=True
        ):
            if other == -1 or (other == identity and cam == camera):
                continue
            right = other == identity and identity > 0
            items.append((round(distance(query, item, metric), 12), right))
        order = sorted(items)
        found = [rank for rank, (_, right) in enumerate(order, 1) if right]
        unmatched += not found
        if found:
            ranks.append(found)
    return ranks, unmatched


def scores(ranks: list[list[int]], trapezoid: bool) -> dict[str, float]:
    ap, inp = [], []
    for found in ranks:
        total = 0.0
        for i, rank in enumerate(found, 1):
            before = (i - 1) / (rank - 1) if rank > 1 else 1.0
            total += (i / rank + before) / 2 if trapezoid else i / rank
        ap.append(total / len(found))
        inp.append(len(found) / found[-1])
    cmc = {f'rank{k}': np.mean([found[0] <= k for found in ranks]) for k in (1, 5, 10, 20)}
    return {'mAP': np.mean(ap), 'mINP': np.mean(inp), **cmc}


def random_case(seed: int) -> ReIDFeatures:
    """Draw a case with ties (features from few integers), junk, distractors and queries without a match."""
    rng = np.random.default_rng(seed)
    q, g, d = rng.integers(1, 12), rng.integers(1, 60), rng.integers(1, 6)
    levels = [2, 5, 1000][seed % 3]

    def draw(n: int) -> np.ndarray:
        x = rng.integers(0, levels, (n, d)).astype(np.float32)
        return x / 7 if seed % 2 else x

    people = rng.integers(2, 9)
    return ReIDFeatures(
        draw(q),
        rng.integers(1, people + 3, q),
        rng.integers(1, 4, q),
        draw(g),
        rng.integers(-1, people, g),
        rng.integers(1, 4, g),
    )


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
@pytest.mark.parametrize('seed', range(200))
def test_scores_are_those_of_brute_force(seed: int, metric: str) -> None:
    features = random_case(seed)
    ranks, unmatched = brute_force(features, metric)
    if not ranks:
        with pytest.raises(UserError, match=f'none of the {len(features.query_ids)} queries has a match'):
            rank_matches(features, metric)
        return
    found = rank_matches(features, metric)
    assert found.unmatched == unmatched
    for definition in ('precision', 'trapezoid'):
        expected = scores(ranks, definition == 'trapezoid')
        assert found.summary(ap=definition) == pytest.approx(expected, abs=1e-12)
    rows = np.array([[distance(a, b, metric) for b in features.gallery_features] for a in features.query_features])
    given = rank_rows([(slice(i, i + 3), rows[i : i + 3].round(12)) for i in range(0, len(rows), 3)], features)
    assert given.ranks.tolist() == [rank for found in ranks for rank in found]
    assert given.unmatched == unmatched


def clustered(seed: int = 0, gallery: int = 700, dimensions: int = 96) -> ReIDFeatures:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 40, 60 + gallery)
    x = rng.standard_normal((40, dimensions))[ids] + 1.5 * rng.standard_normal((60 + gallery, dimensions))
    x, cams = x.astype(np.float32), rng.integers(1, 5, len(ids))
    return ReIDFeatures(x[:60], ids[:60], cams[:60], x[60:], ids[60:], cams[60:])


def permuted(features: ReIDFeatures, seed: int) -> ReIDFeatures:
    order = np.random.default_rng(seed).permutation(len(features.gallery_ids))
    return ReIDFeatures(
        features.query_features,
        features.query_ids,
        features.query_cams,
        features.gallery_features[order],
        features.gallery_ids[order],
        features.gallery_cams[order],
    )


@pytest.mark.usefixtures('faiss')
@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
@pytest.mark.parametrize(
    ('dtype', 'exponent'),
    [(np.float32, -66), (np.float32, 66), (np.float32, 120), (np.float32, -40), (np.float64, 900), (np.float64, -900)],
)
def test_the_size_of_the_features_has_no_influence(metric: str, dtype: type, exponent: int) -> None:
    features = clustered()
    resized = replace(
        features,
        **{
            f'{side}_features': np.ldexp(getattr(features, f'{side}_features').astype(dtype), exponent)
            for side in ('query', 'gallery')
        },
    )
    assert rank_matches(resized, metric).ranks.tolist() == rank_matches(features, metric).ranks.tolist()
    (_, found), (_, expected) = (
        next(iter(evaluation.KReciprocal(x.query_features, x.gallery_features, metric=metric).rows(60)))
        for x in (resized, features)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_items_far_smaller_than_another_are_distinguished(monkeypatch: pytest.MonkeyPatch) -> None:
    features = clustered(gallery=1100)
    expected = rank_matches(features, 'euclidean').ranks
    monkeypatch.setattr(retrieval, 'BLOCK', 96 * 550)  # so that the large one has a block of its own
    gallery = np.concatenate([1e-21 * features.gallery_features, np.ones((1, 96))])
    small = ReIDFeatures(
        1e-21 * features.query_features,
        features.query_ids,
        features.query_cams,
        gallery,
        np.append(features.gallery_ids, 0),
        np.append(features.gallery_cams, 1),
    )
    assert rank_matches(small, 'euclidean').ranks.tolist() == expected.tolist()


@pytest.mark.parametrize('factor', [1e17, 1e25, 1e36])
def test_features_without_a_direction_beside_another_are_an_error(factor: float) -> None:
    features = clustered()
    gallery = features.gallery_features.copy()
    row = int(np.flatnonzero(features.gallery_ids == 0)[0])
    gallery[row] *= factor
    with pytest.raises(UserError, match=f'vanish beside gallery row {row}, which'):
        rank_matches(replace(features, gallery_features=gallery))
    rank_matches(replace(features, gallery_features=0 * gallery))  # all have none


@pytest.mark.parametrize('reversed_', [False, True])
def test_one_item_without_a_direction_is_no_error_wherever_it_lies(
    reversed_: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = clustered()
    small = int(np.flatnonzero(features.gallery_ids == 0)[-1])
    order = np.append(np.delete(np.arange(len(features.gallery_ids)), small), small)[:: -1 if reversed_ else 1]
    x = features.gallery_features.copy()
    x[small] *= 1e-20
    lost = replace(
        features,
        **{
            f'gallery_{name}': value[order]
            for name, value in (('features', x), ('ids', features.gallery_ids), ('cams', features.gallery_cams))
        },
    )
    expected = rank_matches(lost).ranks
    monkeypatch.setattr(retrieval, 'BLOCK', 96 * (len(x) - 1))  # the last one has a block of its own
    np.testing.assert_array_equal(rank_matches(lost).ranks, expected)


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_many_matches_are_looked_up_in_larger_parts(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features = clustered()
    expected, widths = rank_matches(features, metric).ranks, []
    prepare = retrieval._Similarities.to

    def noted(self: object, items: np.ndarray) -> object:
        widths.append(len(items))
        return prepare(self, items)

    monkeypatch.setattr(retrieval._Similarities, 'to', noted)
    monkeypatch.setattr(retrieval, '_COLUMNS', (5, 2**14))
    np.testing.assert_array_equal(rank_matches(features, metric).ranks, expected)
    matches = len(expected) / len(features.query_ids)
    assert max(widths) == min(int(128 * matches), (features.gallery_ids != -1).sum())


def test_features_that_are_all_alike_are_compared_in_small_tiles() -> None:
    query, gallery = np.ones((512, 512), np.float32), np.ones((128, 512), np.float32)
    ids, cams = np.full(512, 1), np.zeros(512, int)
    features = ReIDFeatures(query, ids, cams, gallery, (np.arange(128) < 8) + 0, np.ones(128, int))
    tracemalloc.start()
    rank_matches(features, 'euclidean')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * 2**20  # 512 x 32 differences of 512 numbers in float64 take 64 MiB


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_average_precision_is_scikit_learns_where_nothing_ties(metric: str) -> None:
    features = clustered()
    found = rank_matches(features, metric)
    expected = []
    for row in found.queries:
        kept = (features.gallery_ids != features.query_ids[row]) | (features.gallery_cams != features.query_cams[row])
        similarity = [-distance(features.query_features[row], x, metric) for x in features.gallery_features[kept]]
        expected.append(average_precision_score(features.gallery_ids[kept] == features.query_ids[row], similarity))
    np.testing.assert_allclose(found.average_precision(), expected, rtol=1e-12)


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_the_order_of_a_gallery_full_of_duplicates_has_no_influence(metric: str) -> None:
    features = clustered(gallery=300, dimensions=130)
    rng = np.random.default_rng(1)
    copies = rng.integers(0, 300, 900)
    doubled = ReIDFeatures(
        features.query_features,
        features.query_ids,
        features.query_cams,
        features.gallery_features[copies],
        rng.permutation(features.gallery_ids[copies]),
        features.gallery_cams[copies],
    )
    expected = rank_matches(doubled, metric).ranks
    for seed in range(3):
        np.testing.assert_array_equal(rank_matches(permuted(doubled, seed), metric).ranks, expected)


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_blocks_have_no_influence(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features = clustered()
    expected = rank_matches(features, metric).ranks
    monkeypatch.setattr(retrieval, 'BLOCK', 37 * 96)
    monkeypatch.setattr(retrieval, '_SIMILARITIES', 7 * retrieval._COLUMNS[0])
    monkeypatch.setattr(retrieval, '_EXACT', 2)
    np.testing.assert_array_equal(rank_matches(features, metric).ranks, expected)


def test_distances_that_are_equal_in_float32_are_ranked_by_float64() -> None:
    features = clustered(gallery=200)
    close = 1 + 2e-8 * features.gallery_features.astype(np.float64)
    near = ReIDFeatures(
        np.ones_like(features.query_features),
        features.query_ids,
        features.query_cams,
        close,
        features.gallery_ids,
        features.gallery_cams,
    )
    assert (close.astype(np.float32) == 1).mean() > 0.5
    expected, _ = brute_force(
        ReIDFeatures(
            1e8 * (near.query_features.astype(np.float64) - 1),
            near.query_ids,
            near.query_cams,
            1e8 * (close - 1),
            near.gallery_ids,
            near.gallery_cams,
        ),
        'euclidean',
    )
    assert rank_matches(near, 'euclidean').ranks.tolist() == [rank for found in expected for rank in found]


def test_ties_count_against_the_query() -> None:
    alike = np.ones((1, 4), np.float32)
    features = ReIDFeatures(
        alike, np.array([1]), np.array([1]), np.repeat(alike, 10, 0), np.array([1, 1, *[0] * 8]), np.full(10, 2)
    )
    found = rank_matches(features)
    assert found.ranks.tolist() == [9, 10]
    assert found.average_precision() == pytest.approx((1 / 9 + 2 / 10) / 2)
    assert found.summary()['rank5'] == 0


def test_a_large_distant_item_does_not_blur_the_others() -> None:
    features = clustered()
    x = np.concatenate([features.gallery_features, np.full((1, 96), 1e6, np.float32)])
    far = ReIDFeatures(
        features.query_features,
        features.query_ids,
        features.query_cams,
        x,
        np.append(features.gallery_ids, 0),
        np.append(features.gallery_cams, 1),
    )
    expected = rank_matches(features, 'euclidean').ranks
    np.testing.assert_array_equal(rank_matches(far, 'euclidean').ranks, expected)


def test_short_vectors_have_a_direction() -> None:
    gallery = np.array([[1e-13, 1e-14], [1, 0.2], [0, 0]])
    features = ReIDFeatures(
        np.array([[1.0, 0]]), np.array([1]), np.array([1]), gallery, np.array([1, 0, 0]), np.full(3, 2)
    )
    assert rank_matches(features).ranks.tolist() == [1]


def test_rows_must_be_those_of_all_queries() -> None:
    features = clustered()
    rows = np.zeros((60, 700))
    for blocks in ([], [(slice(0, 10), rows[:10])], [(slice(10, 60), rows[10:])], [(slice(0, 60), rows[:, :3])]):
        with pytest.raises(ValueError, match='rank_rows: expected the distances of'):
            rank_rows(blocks, features)


def test_keys_are_ordered_by_row_similarity_and_column() -> None:
    rng = np.random.default_rng(0)
    similarities = np.array([-np.inf, -2, -1e-45, -0.0, 0, 1e-45, 2, np.inf], np.float32)[rng.integers(0, 8, 500)]
    rows, columns = rng.integers(0, 1024, 500), rng.integers(0, 2**16, 500)
    keys = retrieval._keys(rows, similarities, columns)
    np.testing.assert_array_equal(keys.argsort(kind='stable'), np.lexsort((columns, similarities, rows)))
    zeros = retrieval._keys(np.zeros(2, int), np.array([-0.0, 0], np.float32), 0)
    assert zeros[0] == zeros[1]


def test_unknown_names_are_reported() -> None:
    with pytest.raises(UserError, match="expected 'cosine' or 'euclidean', got 'l2'"):
        rank_matches(clustered(), 'l2')
    with pytest.raises(UserError, match="expected 'precision' or 'trapezoid', got 'auc'"):
        rank_matches(clustered()).average_precision('auc')


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_a_lower_precision_of_other_products_changes_no_rank(metric: str, low_precision: None) -> None:
    features = clustered(dimensions=2048)
    exact = [rank for found in brute_force(features, metric)[0] for rank in found]
    np.testing.assert_array_equal(rank_matches(features, metric).ranks, exact)


def test_products_of_a_lower_precision_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, 'inner_products', lambda a, b: (a.bfloat16() @ b.bfloat16().T).float())
    for metric in ('cosine', 'euclidean'):
        with pytest.raises(UserError, match='switch off lower precision of matrix products'):
            rank_matches(clustered(), metric)


@pytest.mark.parametrize('kind', ['one-hot', 'signs'])
@pytest.mark.parametrize('seed', range(12))
def test_matches_that_float32_knows_exactly_say_nothing_of_the_other_items(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    code = np.eye(1, 512, 7)[0] if kind == 'one-hot' else rng.choice([-1.0, 1.0], 512)
    dense = rng.random(512) + 1
    near = dense + 1e-3 * rng.standard_normal((401, 512))
    query = np.concatenate([np.repeat(code[None], 40, 0), dense[None]]).astype(np.float32)
    gallery = np.concatenate([np.repeat(code[None], 40, 0), near]).astype(np.float32)
    features = ReIDFeatures(
        query, np.repeat([1, 2], [40, 1]), np.full(41, 1), gallery, np.repeat([1, 2, 0], [40, 1, 400]), np.full(441, 2)
    )
    for metric in ('cosine', 'euclidean'):
        similar = [distance(query[-1], x, metric) for x in gallery[40:]]
        if metric == 'cosine':  # equal in float32
            assert np.ptp(similar) < 2e-7
        expected = 1 + sum(x < similar[0] for x in similar[1:])
        assert rank_matches(features, metric).ranks[-1] == expected


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
@pytest.mark.parametrize('offset', [0, 3])
def test_the_ranks_of_many_matches_are_those_of_float64(metric: str, offset: int) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((2150, 512)) + offset).astype(np.float32)
    ids, cams = rng.integers(1, 11, 2150), rng.integers(1, 4, 2150)
    features = ReIDFeatures(x[:150], ids[:150], cams[:150], x[150:], ids[150:], cams[150:])
    found = rank_matches(features, metric)
    assert len(found.ranks) > 10_000
    x = x.astype(np.float64)
    if metric == 'cosine':
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    expected = []
    for row in range(150):
        similarity = x[150:] @ x[row] if metric == 'cosine' else -((x[150:] - x[row]) ** 2).sum(1)
        kept = (ids[150:] != ids[row]) | (cams[150:] != cams[row])
        order = np.argsort(-similarity[kept])
        expected += (1 + np.flatnonzero((ids[150:] == ids[row])[kept][order])).tolist()
    assert found.ranks.tolist() == expected


def test_a_distance_that_is_nan_is_the_farthest():
    features = ReIDFeatures(
        query_features=np.zeros((1, 2), np.float32),
        query_ids=np.array([1]),
        query_cams=np.array([0]),
        gallery_features=np.zeros((5, 2), np.float32),
        gallery_ids=np.array([2, 2, 1, 2, 1]),
        gallery_cams=np.full(5, 1),
    )
    rows = [(slice(0, 1), np.array([[0.5, 0.1, np.nan, 0.2, 0.3]]))]
    assert rank_rows(rows, features).ranks.tolist() == [3, 5]
