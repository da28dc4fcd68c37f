"""Approximate search, for galleries that are too large for an exact one, and its recall."""

from typing import Any, Literal

import faiss
import numpy as np

from kd_plugins.errors import UserError
from kd_plugins.evaluation.features import BLOCK, ReIDFeatures
from kd_plugins.evaluation.retrieval import Metric, Retrieval, retrieval_of, same_identity

Index = Literal['ivf', 'hnsw']


def rank_approximately(
    features: ReIDFeatures, index: Index, k: int = 100, metric: Metric = 'cosine'
) -> tuple[Retrieval, float]:
    """Rank the matches that an approximate search finds among the first k items.

    ``'ivf'`` searches the nearest eighth of ``4 sqrt(G)`` cells, ``'hnsw'`` a graph with 32 neighbours an item. A match
    that is not found gets a rank of infinity. Items of equal similarity are ranked in the order in which the search
    returns them. The index holds a copy of the gallery.

    Args:
        features: Query and gallery, without junk.
        index: Kind of the faiss index.
        k: Number of items to find, from 1.
        metric: ``'cosine'`` or ``'euclidean'``.

    Returns:
        The ranks, and the recall: the fraction of the exact first k that is found, on average over all queries.

    Raises:
        UserError: An option out of its range, or no query has a match.

    Example:
        >>> import numpy as np
        >>> from kd_plugins.evaluation import ReIDFeatures, rank_approximately
        >>> gallery = np.random.default_rng(0).standard_normal((500, 8))
        >>> ids, cams = np.arange(1, 501), np.ones(500, int)
        >>> features = ReIDFeatures(gallery[:20] + 0.01, ids[:20], cams[:20] + 1, gallery, ids, cams)
        >>> retrieval, recall = rank_approximately(features, 'hnsw', k=10)
        >>> retrieval.summary(ranks=[1])['rank1'], recall > 0.9
        (1.0, True)
    """
    if index not in ('ivf', 'hnsw') or k < 1:
        raise UserError(f"approximate search: expected 'ivf' or 'hnsw' and k of at least 1, got '{index}' and {k}")
    if metric not in ('cosine', 'euclidean'):
        raise UserError(f"metric: expected 'cosine' or 'euclidean', got '{metric}'")
    pairs = same_identity(features)
    left_out = np.bincount(pairs.query[~pairs.match], minlength=len(features.query_ids))
    # As many more as are left out of a query's ranking, so that k remain.
    count = min(len(features.gallery_ids), k + int(left_out.max()))
    distance = faiss.METRIC_INNER_PRODUCT if metric == 'cosine' else faiss.METRIC_L2

    def prepared(x: np.ndarray) -> np.ndarray:
        x = np.array(x, np.float32, order='C')
        if metric == 'cosine':
            faiss.normalize_L2(x)
        return x

    size, dimensions = features.gallery_features.shape
    cells = max(1, min(int(4 * size**0.5), size // 39))  # faiss needs 39 items to train a cell
    kind = f'IVF{cells},Flat' if index == 'ivf' else 'HNSW32,Flat'
    searcher: Any = faiss.index_factory(dimensions, kind, distance)  # faiss declares what all kinds have
    if index == 'ivf':
        every = max(1, size // (256 * cells))  # more than 256 items a cell do not improve it
        searcher.train(prepared(features.gallery_features[::every]))
        searcher.nprobe = max(1, cells // 8)
    else:
        searcher.hnsw.efSearch = max(2 * count, 64)
    exact = faiss.ResultHeap(len(features.query_ids), count, keep_max=metric == 'cosine')
    query = prepared(features.query_features)
    step = max(1, BLOCK // dimensions)
    for start in range(0, size, step):
        block = prepared(features.gallery_features[start : start + step])
        searcher.add(block)
        values, items = faiss.knn(query, block, min(count, len(block)), distance)
        exact.add_result(values, items + start)
    exact.finalize()
    found = searcher.search(query, count)[1]
    ranks = np.full(int(pairs.match.sum()), np.inf)
    starts = np.searchsorted(pairs.query, np.arange(len(found) + 1))
    matches_before = np.append(0, pairs.match.cumsum())
    recall = []
    for row in range(len(found)):
        own = slice(*starts[row : row + 2])
        left_out = pairs.gallery[own][~pairs.match[own]]
        kept, wanted = (x[(x >= 0) & ~np.isin(x, left_out)][:k] for x in (found[row], exact.I[row]))
        recall.append(np.isin(wanted, kept).mean() if len(wanted) else 1.0)
        found_ranks = 1 + np.flatnonzero(np.isin(kept, pairs.gallery[own][pairs.match[own]]))
        ranks[matches_before[own.start] :][: len(found_ranks)] = found_ranks
    return retrieval_of(pairs, ranks, len(found)), float(np.mean(recall))
