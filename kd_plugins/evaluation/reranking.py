"""Better rankings from the neighbours: alpha query expansion and k-reciprocal re-ranking.

Both are the published algorithms, the second without the square matrices of its usual form: only the nearest neighbours
of the N items are kept, and the rest is computed from them by sparse products.
"""

from collections.abc import Iterator
from functools import partial
from typing import Literal

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from kd_plugins.errors import UserError
from kd_plugins.evaluation.features import in_range
from kd_plugins.evaluation.products import in_threads, inner_products

Floats = NDArray[np.floating]
_TILE = 500  # a cache holds such tiles; transposing a power of 2 is several times slower
_KEPT = 2**28  # similarities of queries to the gallery, 1 GiB; more are computed a second time


def _check(condition: bool, expected: str, given: object) -> None:
    if not condition:
        raise UserError(f're-ranking: expected {expected}, got {given}')


def _checked(query: Floats, gallery: Floats) -> tuple[Floats, ...]:
    fits = query.ndim == gallery.ndim == 2 and query.shape[1] == gallery.shape[1] and query.size > 0 < gallery.size
    _check(fits, 'features (Q, D) and (G, D) of the same D, neither empty', f'{query.shape} and {gallery.shape}')
    _check(all(bool(np.isfinite(x).all()) for x in (query, gallery)), 'finite features', 'NaN or infinity')
    return in_range(query, gallery)


def _unit(features: Floats) -> NDArray[np.float32]:
    """Copy features with L2 norm 1 in every row; zero rows stay zero."""
    features = np.array(features, np.float32, order='C')
    faiss.normalize_L2(features)
    return features


def expand_queries(query: Floats, gallery: Floats, n: int = 10, alpha: float = 3.0) -> NDArray[np.float32]:
    """Expand every query by its nearest gallery items (alpha query expansion).

    With all features of L2 norm 1, ``q' = q + sum_i max(q'g_i, 0)^alpha g_i`` over the n gallery items g_i with the
    largest inner product, scaled to L2 norm 1. Alpha 0 is the plain average.

    Args:
        query: Features (Q, D).
        gallery: Features (G, D).
        n: Number of gallery items, from 1; all where there are fewer.
        alpha: Exponent, from 0; the larger it is, the smaller is the weight of farther items.

    Returns:
        Features (Q, D), L2-normalised.

    Raises:
        UserError: n below 1, alpha below 0, or features that do not fit together.

    References:
        1. Radenovic, Tolias, Chum: Fine-tuning CNN Image Retrieval with No Human Annotation, TPAMI 2018, section 3.3.

    Example:
        >>> import numpy as np
        >>> from kd_plugins.evaluation import expand_queries
        >>> query, gallery = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [0.6, 0.8]])
        >>> expand_queries(query, gallery, n=1, alpha=0).round(2)  # halfway to the nearest item
        array([[0.89, 0.45]], dtype=float32)
    """
    _check(n >= 1, 'n of at least 1', n)
    _check(alpha >= 0, 'alpha of at least 0', alpha)
    query, gallery = map(_unit, _checked(query, gallery))
    cosines, items = faiss.knn(query, gallery, min(n, len(gallery)), faiss.METRIC_INNER_PRODUCT)
    return _unit(query + _sparse(items, len(gallery), np.maximum(cosines, 0) ** alpha) @ gallery)


def _sparse(columns: NDArray[np.integer], width: int, values: Floats | None = None) -> csr_array:
    """Return the sparse matrix (N, width) with values, by default ones, at the given columns (N, k) of each row."""
    values = np.ones(columns.shape, np.float32) if values is None else values
    starts = np.arange(0, columns.size + 1, columns.shape[1])
    return csr_array((values.ravel(), columns.ravel(), starts), (len(columns), width))


class _Part:
    """Consecutive features and half their squared norms, ready for similarities to others."""

    def __init__(self, features: NDArray[np.float32]) -> None:
        self._features = torch.from_numpy(features)
        self._halves = torch.from_numpy(np.einsum('nd,nd->n', features, features)) / 2

    def similarities(self, others: '_Part') -> Tensor:
        """Return minus half the squared distances, which rounding can take a little above 0."""
        similarities = inner_products(self._features, others._features)
        similarities -= self._halves[:, None]
        similarities -= others._halves
        return similarities


def _neighbours(
    features: NDArray[np.float32], k: int, queries: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], Tensor | None]:
    """Return the k nearest items of each, (N, k), itself first, and the squared distance of the farthest, (N,).

    One pass over the upper half of the distances gives both; two calls of ``faiss.knn`` would take four times as long.
    Third come the similarities of the first items, the queries, to the others, unless these are too many to keep.
    """
    n = len(features)
    heap = faiss.ResultHeap(n, k, keep_max=True)
    least = torch.zeros(n)
    kept = torch.empty(queries, n - queries) if queries * (n - queries) <= _KEPT else None
    items = np.split(np.arange(n), [*range(_TILE, queries, _TILE), *range(queries, n, _TILE)])
    parts = [_Part(features[own]) for own in items]

    def both(i: int, j: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64], Tensor, Tensor]]:
        rows, columns, tile = items[i], items[j], parts[i].similarities(parts[j])
        if kept is not None and rows[0] < queries <= columns[0]:
            kept[rows[0] : rows[-1] + 1, columns[0] - queries : columns[-1] + 1 - queries] = tile
        if i == j:
            smallest = tile.amin(1)
            return [(rows, rows, tile.fill_diagonal_(torch.inf), smallest)]  # each is its own nearest
        mirrored = tile.T.contiguous()  # NumPy transposes several times more slowly
        return [(rows, columns, tile, tile.amin(1)), (columns, rows, mirrored, mirrored.amin(1))]

    for tiles in in_threads(partial(both, i, j) for i in range(len(parts)) for j in range(i, len(parts))):
        for own, others, similarities, smallest in tiles:
            least[own] = torch.minimum(least[own], smallest)
            heap.add_result_subset(own, similarities.numpy(), others)
    heap.finalize()
    return heap.I, -2 * least.numpy(), kept


def _reciprocal(neighbours: NDArray[np.int64]) -> csr_array:
    """Mark the pairs (N, N) that are in each other's list (N, k)."""
    listed = _sparse(neighbours, len(neighbours))
    return listed.multiply(listed.T).tocsr()


def _expanded(neighbours: NDArray[np.int64], k1: int) -> csr_array:
    """Return the k-reciprocal sets (N, N), each with the sets of half the size that lie in it by more than 2/3."""
    sets = _reciprocal(neighbours[:, : k1 + 1])
    halves = _reciprocal(neighbours[:, : round(k1 / 2) + 1])  # to even, as the authors round
    candidates = (sets @ halves).multiply(sets).tocsr()  # how many of the candidate's half set lie in the set
    candidates.data = (3 * candidates.data > 2 * halves.sum(1)[candidates.indices]).astype(np.float32)
    candidates.eliminate_zeros()
    return (sets + candidates @ halves).tocsr()


class KReciprocal:
    r"""k-reciprocal re-ranking, with the results of the authors' code and without its N x N matrices.

    Over queries and gallery together (N items), with :math:`D_{ij}` the squared Euclidean distance over the largest
    of row i:

    * :math:`R(i, k)`: the j among the first k + 1 of i (i included) that have i among their first k + 1.
      :math:`R^*(i)` adds to :math:`R(i, k_1)` every :math:`R(c, k_1 / 2)` of its c of which more than 2/3 lies in it.
    * :math:`V_{ij} = e^{-D_{ij}}` over :math:`R^*(i)`, else 0, scaled to sum 1; then the mean of V over the first
      :math:`k_2` of i.
    * With :math:`t = \sum_l \min(V_{il}, V_{jl})` the distance is
      :math:`(1 - \lambda) (1 - t / (2 - t)) + \lambda D_{ij}`.

    Items at the same distance are ranked in no particular order, but each is its own nearest. Memory: two copies of the
    features, some tiles of distances, O(N k), and those of the queries to the gallery, or, where they would exceed
    1 GiB, the time to compute them twice.

    Args:
        query: Features (Q, D).
        gallery: Features (G, D).
        k1: Number of neighbours among which two items must find each other, from 1.
        k2: Number of neighbours over which V is averaged, from 1, which leaves V as it is.
        lambda_value: Weight of D, from 0 to 1.
        metric: ``'cosine'`` scales the features to L2 norm 1, ``'euclidean'`` takes them as they are.

    Raises:
        UserError: An option out of its range, or features that do not fit together.

    References:
        1. Zhong, Zheng, Cao, Li: Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017.
        2. github.com/zhunzhong07/person-re-ranking (the row maxima, the rounding of k1 / 2).

    Example:
        >>> import numpy as np
        >>> from kd_plugins.evaluation import KReciprocal
        >>> query, gallery = np.array([[1.0, 0.0]]), np.array([[0.9, 0.2], [0.2, 0.9], [0.1, 1.0]])
        >>> [(rows, distances)] = KReciprocal(query, gallery, k1=1, k2=1).rows()
        >>> distances.round(2)  # the query and the first item are each other's nearest
        array([[0.03, 0.96, 1.  ]], dtype=float32)
    """

    def __init__(
        self,
        query: Floats,
        gallery: Floats,
        k1: int = 20,
        k2: int = 6,
        lambda_value: float = 0.3,
        metric: Literal['cosine', 'euclidean'] = 'cosine',
    ) -> None:
        _check(k1 >= 1, 'k1 of at least 1', k1)
        _check(k2 >= 1, 'k2 of at least 1', k2)
        _check(0 <= lambda_value <= 1, 'lambda_value from 0 to 1', lambda_value)
        _check(metric in ('cosine', 'euclidean'), "metric 'cosine' or 'euclidean'", repr(metric))
        self._lambda, self._queries = lambda_value, len(query)
        features = np.ascontiguousarray(np.concatenate(_checked(query, gallery)), np.float32)
        if metric == 'cosine':
            faiss.normalize_L2(features)
        # Distances do not depend on the origin, but the rounding of their parts does.
        torch.from_numpy(features).sub_(torch.from_numpy(features).mean(0))
        self._features = features
        count = min(len(features), max(k1 + 1, k2))
        neighbours, self._farthest, self._kept = _neighbours(features, count, len(query))
        self._farthest[self._farthest <= 0] = 1  # all items are the same
        near = neighbours[:, :k2]
        encoding = _sparse(near, len(features)) @ self._encoding(_expanded(neighbours, k1))
        encoding.data /= near.shape[1]
        self._own, self._inverted = encoding[: len(query)], encoding[len(query) :].tocsc()

    def _encoding(self, support: csr_array) -> csr_array:
        """Return V before the mean."""
        rows, columns = (x.astype(np.int64) for x in support.nonzero())
        distances, (x, i, j) = np.empty(len(rows), np.float32), map(faiss.swig_ptr, (self._features, rows, columns))
        pairwise = faiss.pairwise_indexed_L2sqr  # type: ignore[attr-defined]  # not in the stubs of faiss
        pairwise(self._features.shape[1], len(rows), x, i, x, j, faiss.swig_ptr(distances))
        weights = np.exp(-distances / self._farthest[rows])
        weights /= np.bincount(rows, weights)[rows]
        return csr_array((weights, (rows, columns)), support.shape)

    def rows(self, block: int = 256) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield the final distances, block by block: the rows of some queries, and their distances (b, G).

        Args:
            block: Largest number of queries in a block, b.
        """
        gallery = _Part(self._features[self._queries :])
        for start in range(0, self._queries, block):
            part = slice(start, min(start + block, self._queries))
            if self._kept is None:
                distances = _Part(self._features[part]).similarities(gallery).clamp_max_(0)
            else:
                distances = self._kept[part].clamp_max(0)
            distances *= -2 * self._lambda / torch.from_numpy(self._farthest[part, None])

            own = self._own[part]
            owners = np.repeat(np.arange(own.shape[0]), np.diff(own.indptr))
            others = self._inverted[:, own.indices]  # the gallery items that share an entry with a query
            counts = np.diff(others.indptr)
            least = np.minimum(others.data, np.repeat(own.data, counts))
            cells = np.repeat(owners, counts), others.indices
            shared = torch.from_numpy(coo_array((least, cells), tuple(distances.shape)).toarray())
            shared.sub_(2).reciprocal_()  # 1 - t / (2 - t) = 2 + 2 / (t - 2)
            distances.add_(shared, alpha=2 * (1 - self._lambda)).add_(2 * (1 - self._lambda))
            yield part, distances.numpy()
