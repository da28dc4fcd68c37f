"""Exact retrieval scores from the ranks of the matches alone.

The gallery is never sorted as a whole. Cumulative matching, mAP and mINP need only how many wrong items are ranked
before each match: a similarity product, a block at a time, and a count of what exceeds the similarities of the matches.
(faiss finds the k nearest and has no such count; here no k truncates a ranking.)
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from mmengine.dist import all_reduce, get_dist_info
from rich.console import Console
from rich.progress import track
from torch import Tensor

from kd_plugins.errors import UserError
from kd_plugins.evaluation.features import BLOCK, ReIDFeatures
from kd_plugins.evaluation.products import inner_products, operand

Metric = Literal['cosine', 'euclidean']
AveragePrecision = Literal['precision', 'trapezoid']
_QUERIES = 256  # rows of a block of similarities
_TINY = 1e-15  # a shorter vector has no direction
_TIE = 1e-12  # relative; what float64 computes in two ways, such as the cosines of x and 3 x, differs by 1e-15


class Pairs(NamedTuple):
    """Every query with every gallery item of its identity, in the order of the queries.

    Attributes:
        query: (P,) rows of the query.
        gallery: (P,) rows of the gallery.
        match: (P,) whether the cameras differ. Otherwise the item is left out of that query's ranking.
    """

    query: np.ndarray
    gallery: np.ndarray
    match: np.ndarray


def same_identity(features: ReIDFeatures) -> Pairs:
    """Pair the queries with the gallery items of their identity; identities below 1 pair with nothing."""
    ids = features.gallery_ids
    order = np.argsort(ids, kind='stable')
    first, last = (np.searchsorted(ids, features.query_ids, side, sorter=order) for side in ('left', 'right'))
    counts = np.where(features.query_ids > 0, last - first, 0)
    query = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(query)) - np.repeat(counts.cumsum() - counts, counts)
    gallery = order[np.repeat(first, counts) + within]
    return Pairs(query, gallery, features.query_cams[query] != features.gallery_cams[gallery])


@dataclass(frozen=True)
class Retrieval:
    """The outcome for every query that has a match.

    Attributes:
        queries: (N,) rows of the queries that have a match, ascending.
        counts: (N,) how many matches each has.
        ranks: Ranks of the matches, from 1, one query after the other, ascending for each. A match that an approximate
            search does not find has a rank of infinity.
        unmatched: Number of queries that have no match and are left out.
    """

    queries: np.ndarray
    counts: np.ndarray
    ranks: np.ndarray
    unmatched: int

    def _mean(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(np.repeat(np.arange(len(self.counts)), self.counts), values) / self.counts

    def average_precision(self, definition: AveragePrecision = 'precision') -> np.ndarray:
        r"""Return the average precision of every query, (N,).

        With ``r_i`` the rank of the i-th of m matches:

        * ``'precision'``: :math:`\frac1m\sum_i i / r_i`, the mean of the precision at each match (no interpolation).
        * ``'trapezoid'``: :math:`\frac1m\sum_i\frac12\left(\frac{i}{r_i} + \frac{i-1}{r_i-1}\right)`, where the second
          fraction is 1 for :math:`r_i = 1`: the area under the precision-recall curve as Market-1501's own evaluation
          sums it.

        Raises:
            UserError: The definition is neither.

        References:
            1. Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015, and its evaluation code.
        """
        number = 1.0 + np.arange(len(self.ranks)) - np.repeat(self.counts.cumsum() - self.counts, self.counts)
        precision = number / self.ranks
        if definition == 'precision':
            return self._mean(precision)
        if definition != 'trapezoid':
            raise UserError(f"average precision: expected 'precision' or 'trapezoid', got '{definition}'")
        before = np.ones_like(precision)
        np.divide(number - 1, self.ranks - 1, out=before, where=self.ranks > 1)
        return self._mean((precision + before) / 2)

    def inverse_penalty(self) -> np.ndarray:
        """Return m over the rank of the last match for every query, (N,); its mean is mINP.

        References:
            1. Ye et al., Deep Learning for Person Re-identification: A Survey and Outlook, TPAMI 2021, section 4.3.
        """
        return self.counts / self.ranks[self.counts.cumsum() - 1]

    def first_match(self) -> np.ndarray:
        """Return the rank of the first match for every query, (N,)."""
        return self.ranks[self.counts.cumsum() - self.counts]

    def summary(self, ranks: Iterable[int] = (1, 5, 10, 20), ap: AveragePrecision = 'precision') -> dict[str, float]:
        """Return ``mAP``, ``mINP`` and, for every k in ``ranks``, ``rank<k>``: fractions of 1, over these queries."""
        first = self.first_match()
        return {
            'mAP': float(self.average_precision(ap).mean()),
            'mINP': float(self.inverse_penalty().mean()),
            **{f'rank{k}': float((first <= k).mean()) for k in ranks},
        }


def retrieval_of(pairs: Pairs, ranks: np.ndarray, queries: int) -> Retrieval:
    """Collect the ranks of the matches of all queries, query by query, ascending.

    Raises:
        UserError: There is no match at all.
    """
    found, counts = np.unique(pairs.query[pairs.match], return_counts=True)
    if not len(found):
        raise UserError(
            f'none of the {queries} queries has a match: no gallery item of its identity from another '
            'camera; check ids and cams'
        )
    return Retrieval(found, counts, ranks, queries - len(found))


def _exact(query: np.ndarray, gallery: np.ndarray, items: np.ndarray, metric: Metric) -> np.ndarray:
    """Return the similarities of a query to some items in float64; equal items get equal ones, whatever their index."""
    values = np.empty(len(items))
    for start in range(0, len(items), 4096):
        part = slice(start, start + 4096)
        x = gallery[items[part]].astype(np.float64)
        if metric == 'cosine':
            norms = np.sqrt(np.einsum('nd,nd->n', x, x))
            values[part] = np.einsum('nd,d->n', x, query) / np.maximum(norms, _TINY)
        else:
            x -= query
            values[part] = -0.5 * np.einsum('nd,nd->n', x, x)
    return values


class _Similarities:
    """Blocks of similarities in float32, cosines or minus half the squared Euclidean distances, and their errors."""

    def __init__(self, features: ReIDFeatures, metric: Metric, device: str) -> None:
        self._gallery, self._metric, self._device = features.gallery_features, metric, device
        # Distances do not depend on the origin, but the rounding of their parts does.
        self._origin = self._gallery[:1024].mean(0, dtype=np.float64).astype(np.float32)
        self._query, self._query_size = self._prepared(features.query_features)

    def _prepared(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return rows to multiply, and their sizes: ``(a + b)^2`` of two sizes bounds the parts of a similarity."""
        if self._metric == 'euclidean':
            rows = rows - self._origin
        x = torch.from_numpy(np.array(rows, np.float32, order='C')).to(self._device)
        norms = torch.linalg.vector_norm(x, dim=1)
        if self._metric == 'cosine':
            x /= norms.clamp_min(_TINY)[:, None]
            return x, torch.full_like(norms, 0.5)
        return x, norms * 0.5**0.5

    def blocks(self, rows: slice) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Yield the rows of some queries, their similarities to ``rows`` of the gallery, and the sizes of both."""
        gallery, size = self._prepared(self._gallery[rows])
        gallery = operand(gallery)
        for start in range(0, len(self._query), _QUERIES):
            part = slice(start, start + _QUERIES)
            own = self._query_size[part]
            similarity = inner_products(operand(self._query[part]), gallery)
            if self._metric == 'euclidean':
                similarity -= own.square()[:, None]
                similarity -= size.square()
            yield part, similarity, own, size


def _ordered(values: Tensor) -> Tensor:
    """Sort every row of values, ascending."""
    if values.device.type == 'cpu':  # NumPy's is vectorised, some ten times faster than torch's, and leaves the lock
        ordered, threads = values.numpy().copy(), torch.get_num_threads()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(partial(np.ndarray.sort, axis=1), np.array_split(ordered, threads)))
        return torch.from_numpy(ordered)
    return values.sort(dim=1).values


def _indices_of(values: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Return the indices at which a row of float32 has one of some values."""
    # Their last 16 bits exclude nearly all of a long row at once.
    table = np.zeros(2**16, bool)
    table[values.view(np.uint16)[::2]] = True
    indices = np.flatnonzero(table[row.view(np.uint16)[::2]])
    return indices[np.isin(row[indices], values)]


def _exact_matches(query: np.ndarray, gallery: np.ndarray, pairs: Pairs, metric: Metric) -> np.ndarray:
    """Return the similarity of every match in float64, (P,); NaN for the pairs that are no match."""
    similarities = np.full(len(pairs.query), np.nan)
    matches = np.flatnonzero(pairs.match)
    for own in np.split(matches, np.flatnonzero(np.diff(pairs.query[matches])) + 1):
        if len(own):
            similarities[own] = _exact(query[pairs.query[own[0]]], gallery, pairs.gallery[own], metric)
    return similarities


def _check_rounding(computed: Tensor, exact: np.ndarray, bound: float) -> None:
    """Raise UserError where a similarity is off by more than ``bound``; NaN in ``exact`` is not known."""
    off = np.abs(computed.cpu().numpy() - exact)[~np.isnan(exact)]
    if not (off <= bound).all():
        raise UserError(
            f'the similarities computed on {computed.device} are off by {off.max():.1e}, more than float32 rounds '
            f'({bound:.1e}): switch off lower precision of matrix products, as in '
            "torch.set_float32_matmul_precision('highest')"
        )


class _Windows(NamedTuple):
    """The similarities that float32 cannot separate from the limits, in a block of b queries with M limits each.

    Attributes:
        ordered: (b, G) similarities of each query, ascending.
        lower: (b, M) smallest similarity that may equal the limit.
        upper: (b, M) largest such similarity.
        first: (b, M) index of the first of them in ``ordered``.
        end: (b, M) index after the last of them.
    """

    ordered: Tensor
    lower: np.ndarray
    upper: np.ndarray
    first: np.ndarray
    end: np.ndarray


def _count_in_float32(block: Tensor, limits: np.ndarray, bound: float) -> tuple[np.ndarray, _Windows]:
    """Count the similarities that exceed the limits beyond doubt.

    Args:
        block: Similarities (b, G) in float32.
        limits: Similarities (b, M) in float64; infinite where a query has fewer than M.
        bound: Largest error of a similarity.

    Returns:
        The counts, (b, M), and the windows of those in doubt.
    """
    ordered = _ordered(block)
    lower, upper = (np.nextafter((limits + x * bound).astype(np.float32), np.float32(x * np.inf)) for x in (-1, 1))
    first, end = (
        torch.searchsorted(ordered, torch.from_numpy(limit).to(block.device), right=right).cpu().numpy()
        for limit, right in ((lower, False), (upper, True))
    )
    return ordered.shape[1] - end, _Windows(ordered, lower, upper, first, end)


def _count_in_float64(
    block: Tensor, windows: _Windows, tied: np.ndarray, query: np.ndarray, gallery: np.ndarray, metric: Metric
) -> np.ndarray:
    """Count, among the similarities in doubt, those that reach the limits.

    Args:
        block: Similarities (b, G) in float32.
        windows: Which of them are in doubt.
        tied: Smallest similarities (b, M) in float64 that count as equal to the limits.
        query: Features (b, D) in float64, for ``'cosine'`` of L2 norm 1.
        gallery: Features (G, D).
        metric: ``'cosine'`` or ``'euclidean'``.

    Returns:
        The counts, (b, M).
    """
    counts = np.zeros(tied.shape, np.int64)
    doubtful = windows.first < windows.end
    for row in np.flatnonzero(doubtful.any(1)):
        near = np.flatnonzero(doubtful[row])
        values, ordered = block[row].cpu().numpy(), windows.ordered[row].cpu().numpy()
        inside = np.concatenate([ordered[windows.first[row, i] : windows.end[row, i]] for i in near])
        columns = _indices_of(inside, values)
        values = values[columns]
        candidates = (values >= windows.lower[row, near, None]) & (values <= windows.upper[row, near, None])
        exact = _exact(query[row], gallery, columns, metric)
        counts[row, near] = (candidates & (exact >= tied[row, near, None])).sum(1)
    return counts


def rank_matches(
    features: ReIDFeatures,
    metric: Metric = 'cosine',
    device: str | None = None,
    progress: bool = False,
    distributed: bool = False,
) -> Retrieval:
    """Rank the matches of every query in the gallery by similarity, exactly.

    Items of the query's identity from its camera, and junk, are left out of its ranking. The rank of the i-th match is
    i plus the number of wrong items that are at least as similar. So **ties count against the query**, and the order of
    the gallery has no influence.

    The similarities are compared in float32, and in float64 where two are closer than the rounding of float32. So the
    ranks are those of float64, where a relative difference below 1e-12 is a tie. Rounding is bounded by ``16 +
    2 sqrt(D)`` units in the last place, as theory expects and several times what was ever measured; the bound is
    checked against the float64 similarities of all matches. Memory: the query, one block of the gallery, one of
    similarities, and some numbers for each pair of one identity.

    Args:
        features: Query and gallery.
        metric: ``'cosine'`` or ``'euclidean'``.
        device: Device that computes the products; None for a GPU where there is one.
        progress: Whether to show a progress bar.
        distributed: Whether the processes of a group share the gallery: every one calls this with the same features,
            compares the queries with its part, and returns the whole outcome, equal to that of one process. On GPUs
            each takes its current one.

    Raises:
        UserError: No query has a match, the metric is unknown, or products are set to a lower precision.

    References:
        1. Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis, SIAM J. Sci. Comput. 2019: sums of
           D products err by some sqrt(D) roundings.

    Example:
        >>> import numpy as np
        >>> from kd_plugins.evaluation import ReIDFeatures, rank_matches
        >>> features = ReIDFeatures(
        ...     query_features=np.array([[1.0, 0.0]]),
        ...     query_ids=np.array([7]),
        ...     query_cams=np.array([1]),
        ...     gallery_features=np.array([[0.9, 0.1], [0.8, 0.4], [0.9, 0.2]]),
        ...     gallery_ids=np.array([7, 7, 3]),
        ...     gallery_cams=np.array([2, 3, 3]),
        ... )
        >>> rank_matches(features).ranks
        array([1, 3])
        >>> round(rank_matches(features).summary()['mAP'], 4)  # (1 / 1 + 2 / 3) / 2
        0.8333
    """
    if metric not in ('cosine', 'euclidean'):
        raise UserError(f"metric: expected 'cosine' or 'euclidean', got '{metric}'")
    pairs = same_identity(features)
    query, gallery = features.query_features.astype(np.float64), features.gallery_features
    if metric == 'cosine':
        query /= np.maximum(np.sqrt(np.einsum('nd,nd->n', query, query)), _TINY)[:, None]
    known = _exact_matches(query, gallery, pairs, metric)
    # The matches of each query from the most similar one on, and how many wrong items are at least as similar.
    owner, limits = pairs.query[pairs.match], known[pairs.match]
    limits = limits[np.lexsort((-limits, owner))]
    tied = limits - _TIE * (1 if metric == 'cosine' else np.abs(limits))
    starts = np.searchsorted(owner, np.arange(len(query) + 1))
    position = np.arange(len(owner)) - starts[owner]
    wrong = np.zeros(len(owner), np.int64)

    similarities = _Similarities(features, metric, device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    rounding = (16 + 2 * gallery.shape[1] ** 0.5) * 2.0**-24
    underflow = gallery.shape[1] * 2.0**-124  # products that float32 rounds to 0
    rank, processes = get_dist_info() if distributed else (0, 1)
    first, end = (len(gallery) * i // processes for i in (rank, rank + 1))
    step = min(max(1, BLOCK // gallery.shape[1]), 2**16)
    parts = [slice(start, min(start + step, end)) for start in range(first, end, step)]
    for part in track(parts, 'ranking', console=Console(stderr=True), transient=True, disable=not progress):
        junk = torch.from_numpy(np.flatnonzero(features.gallery_ids[part] == -1))
        inside = (pairs.gallery >= part.start) & (pairs.gallery < part.stop)
        own_query, own_gallery, own_known = pairs.query[inside], pairs.gallery[inside] - part.start, known[inside]
        for rows, block, own_size, size in similarities.blocks(part):
            own = slice(*np.searchsorted(own_query, (rows.start, rows.stop)))
            paired = torch.from_numpy(own_query[own] - rows.start), torch.from_numpy(own_gallery[own])
            bound = rounding * float(own_size.max() + size.max()) ** 2 + underflow
            _check_rounding(block[paired], own_known[own], bound)
            block[paired] = -torch.inf
            block[:, junk] = -torch.inf

            matches = slice(starts[rows.start], starts[min(rows.stop, len(query))])
            cells = owner[matches] - rows.start, position[matches]
            own_limits, own_tied = np.full((2, len(block), int(cells[1].max(initial=0)) + 1), np.inf)
            own_limits[cells], own_tied[cells] = limits[matches], tied[matches]
            counts, windows = _count_in_float32(block, own_limits, bound)

            counts += _count_in_float64(block, windows, own_tied, query[rows], gallery[part], metric)
            wrong[matches] += counts[cells]
    if distributed:
        all_reduce(torch.from_numpy(wrong))  # shares its memory
    return retrieval_of(pairs, wrong + position + 1, len(query))


def rank_rows(rows: Iterable[tuple[slice, np.ndarray]], features: ReIDFeatures) -> Retrieval:
    """Rank the matches by given distances, such as re-ranked ones; ties count against the query.

    Args:
        rows: Blocks, in order, of the rows of some queries and their distances (b, G) to the whole gallery.
        features: Features whose identities and cameras count.

    Raises:
        UserError: No query has a match.
        ValueError: The rows are not those of all queries in order.

    Example:
        >>> import numpy as np
        >>> from kd_plugins.evaluation import ReIDFeatures, rank_rows
        >>> x, ids, cams = np.zeros((3, 1)), np.array([7, 7, 3]), np.array([2, 3, 3])
        >>> features = ReIDFeatures(x[:1], ids[:1], np.array([1]), x, ids, cams)
        >>> rank_rows([(slice(0, 1), np.array([[0.1, 0.5, 0.3]]))], features).ranks
        array([1, 3])
    """
    pairs = same_identity(features)
    starts = np.searchsorted(pairs.query, np.arange(len(features.query_ids) + 1))
    ranks = [np.empty(0, np.int64)]
    junk, expected = features.gallery_ids == -1, 0
    for part, distances in rows:
        if part.start != expected or distances.shape[1:] != junk.shape:
            raise ValueError(
                f'rank_rows: expected the distances of query {expected} and the next to {len(junk)} '
                f'items, got those of {part.start} of shape {distances.shape}'
            )
        for row, distance in enumerate(distances, expected):
            own = slice(*starts[row : row + 2])
            limits = np.sort(distance[pairs.gallery[own][pairs.match[own]]])
            wrong = distance[~junk] if junk.any() else distance
            # Items of the query's own identity are not wrong.
            not_farther = np.searchsorted(np.sort(wrong), limits, 'right')
            same = np.searchsorted(np.sort(distance[pairs.gallery[own]]), limits, 'right')
            ranks.append(not_farther - same + np.arange(1, len(limits) + 1))
        expected += len(distances)
    if expected != len(features.query_ids):
        raise ValueError(f'rank_rows: expected the distances of {len(features.query_ids)} queries, got {expected}')
    return retrieval_of(pairs, np.concatenate(ranks), expected)
