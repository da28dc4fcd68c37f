"""Exact retrieval scores from the ranks of the matches alone.

The gallery is never sorted as a whole. Cumulative matching, mAP and mINP need only how many wrong items are ranked
before each match: a similarity product, a block at a time, and a count of what exceeds the similarities of the matches.
(faiss finds the k nearest and has no such count; here no k truncates a ranking.)
"""

from collections.abc import Callable, Iterable, Iterator
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
from kd_plugins.evaluation.products import in_threads, inner_products

Metric = Literal['cosine', 'euclidean']
_Block = Callable[[slice], tuple[Tensor, float]]
AveragePrecision = Literal['precision', 'trapezoid']
_SIMILARITIES = 2**20  # of a block, which its thread counts while a cache holds it
_COLUMNS = 2**11, 2**14  # of a block, least and most
_EXACT = 32  # features, or queries and items, that are compared in float64 together: a cache holds them
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


def _exact(query: np.ndarray, items: np.ndarray, metric: Metric) -> np.ndarray:
    """Return the similarities (..., b, n) of queries (..., b, D) to items (..., n, D) in float64."""
    query, items = query.astype(np.float64), items.astype(np.float64)
    if metric == 'cosine':
        own, others = (np.maximum(np.sqrt(np.einsum('...d,...d->...', x, x)), _TINY) for x in (query, items))
        return query @ items.swapaxes(-1, -2) / (own[..., None] * others[..., None, :])
    differences = query[..., None, :] - items[..., None, :, :]
    return -0.5 * np.einsum('...d,...d->...', differences, differences)


def _exact_pairs(query: np.ndarray, gallery: np.ndarray, pairs: Pairs, ids: np.ndarray, metric: Metric) -> np.ndarray:
    """Return the similarity of every pair in float64, (P,); ``ids`` are those of the queries."""
    similarities = np.empty(len(pairs.query))
    starts = np.searchsorted(pairs.query, np.arange(len(query) + 1))

    def fill(rows: np.ndarray) -> None:  # of one identity: they pair with the same items
        own = starts[rows, None] + np.arange(starts[rows[0] + 1] - starts[rows[0]])
        for start in range(0, own.shape[1], _EXACT):
            part = own[:, start : start + _EXACT]
            similarities[part] = _exact(query[rows], gallery[pairs.gallery[part[0]]], metric)

    order = np.argsort(ids, kind='stable')
    alike = np.split(order, np.flatnonzero(np.diff(ids[order])) + 1)
    groups = (rows[i : i + _EXACT] for rows in alike for i in range(0, len(rows), _EXACT))
    for _ in in_threads(partial(fill, rows) for rows in groups):
        pass
    return similarities


def _check_rounding(computed: np.ndarray, exact: np.ndarray, bound: float, device: torch.device) -> None:
    """Raise UserError where a similarity is off by more than ``bound``."""
    off = np.abs(computed - exact)
    if not (off <= bound).all():
        raise UserError(
            f'the similarities computed on {device} are off by {off.max():.1e}, more than float32 rounds '
            f'({bound:.1e}): switch off lower precision of matrix products, as in '
            "torch.set_float32_matmul_precision('highest')"
        )


class _Similarities:
    """Blocks of similarities in float32, cosines or minus half the squared Euclidean distances, and their errors."""

    def __init__(self, features: ReIDFeatures, metric: Metric, device: str) -> None:
        self._gallery, self._metric, self._device = features.gallery_features, metric, device
        # Distances do not depend on the origin, but the rounding of their parts does.
        self._origin = self._gallery[:1024].mean(0, dtype=np.float64).astype(np.float32)
        self._query = self._prepared(features.query_features)
        self._norms = torch.linalg.vector_norm(self._query, dim=1)
        if metric == 'cosine':
            self._query = self._query / self._norms.clamp_min(_TINY)[:, None]
        lost, norms = 0, []
        for start in range(0, len(self._gallery), step := max(1, BLOCK // self._gallery.shape[1])):
            block = self._prepared(self._gallery[start : start + step])
            norms.append(torch.linalg.vector_norm(block, dim=1))
            lost += int(block[norms[-1] < _TINY].any(1).sum())
        self._gallery_norms = torch.cat(norms)
        if metric == 'cosine' and 2 * lost > len(self._gallery):
            _, where = max(
                (float(np.abs(row).max()), f'{side} row {i}')
                for side, rows in (('query', features.query_features), ('gallery', self._gallery))
                for i, row in enumerate(rows)
            )
            raise UserError(
                f'most features vanish beside {where}, which holds a number more than 1e12 times theirs: check what '
                'the model returns for that image'
            )

    def _prepared(self, rows: np.ndarray) -> Tensor:
        if self._metric == 'euclidean':
            rows = rows - self._origin
        return torch.from_numpy(np.require(rows, np.float32, ('C', 'W'))).to(self._device)

    def to(self, items: np.ndarray) -> _Block:
        """Return what gives the similarities of some queries to these items, and a bound of their parts."""
        together = items[-1] - items[0] + 1 == len(items)  # then no copy is needed
        gallery = self._prepared(self._gallery[items[0] : items[-1] + 1] if together else self._gallery[items])
        norms = self._gallery_norms[torch.from_numpy(items).to(self._device)]

        def of(rows: slice) -> tuple[Tensor, float]:
            similarities = inner_products(self._query[rows], gallery)
            if self._metric == 'cosine':
                return similarities.div_(norms.clamp_min(_TINY)), 1.0
            own = self._norms[rows]
            similarities -= own.square()[:, None] / 2
            similarities -= norms.square() / 2
            return similarities, float(own.max() + norms.max()) ** 2 / 2

        return of


def _keys(rows: np.ndarray, similarities: np.ndarray, columns: np.ndarray | int) -> np.ndarray:
    """Return integers that are ordered by row, similarity (float32) and column (below 2^16) in turn."""
    bits = (similarities + np.float32(0)).view(np.int32)  # without -0
    keys = (bits ^ (bits >> 31 & 0x7FFFFFFF)).astype(np.int64)  # ordered as the numbers are
    keys <<= 16
    keys += rows << 48
    keys += columns
    return keys


def _count(
    block: np.ndarray,
    owner: np.ndarray,
    limits: np.ndarray,
    bound: float,
    query: np.ndarray,
    gallery: np.ndarray,
    items: np.ndarray,
    metric: Metric,
) -> np.ndarray:
    """Count the items that reach the limits, in float64 where float32 cannot decide.

    Args:
        block: Similarities (b, n) in float32.
        owner: Rows (m,) of the limits, ascending.
        limits: Similarities (m,) in float64.
        bound: Largest error of a similarity in float32.
        query: Features (b, D).
        gallery: Features (G, D).
        items: Rows (n,) of the gallery.
        metric: ``'cosine'`` or ``'euclidean'``.

    Returns:
        The counts, (m,).
    """
    tied = limits - _TIE * (1 if metric == 'cosine' else np.abs(limits))
    lower, upper = (np.nextafter((limits + x * bound).astype(np.float32), np.float32(x * np.inf)) for x in (-1, 1))
    lowest = np.full(len(block), np.inf, np.float32)
    np.minimum.at(lowest, owner, lower)
    index = np.flatnonzero(block >= lowest[:, None])  # the rest reaches no limit, and sorting it would take long
    row = index // len(items)
    keys = np.sort(_keys(row, block.ravel()[index], index - row * len(items)))
    first = np.searchsorted(keys, _keys(owner, lower, 0))
    end = np.searchsorted(keys, _keys(owner, upper, 0xFFFF), 'right')
    last = np.searchsorted(keys, _keys(owner, np.full(len(owner), np.inf, np.float32), 0))

    windows = np.bincount(first, minlength=len(keys) + 1) - np.bincount(end, minlength=len(keys) + 1)
    doubtful = np.flatnonzero(windows[:-1].cumsum() > 0)
    row, column = keys[doubtful] + 2**47 >> 48, keys[doubtful] & 0xFFFF
    if 4 * len(doubtful) > block.size:  # as where all features are alike: products are faster than pairs
        rows, columns = ([slice(i, i + _EXACT) for i in range(0, size, _EXACT)] for size in block.shape)
        exact = np.block([[_exact(query[r], gallery[items[c]], metric) for c in columns] for r in rows])[row, column]
    else:
        exact = np.empty(len(doubtful))
        for start in range(0, len(doubtful), _EXACT):
            part = slice(start, start + _EXACT)
            exact[part] = _exact(query[row[part], None], gallery[items[column[part]], None], metric).ravel()
    # Those beyond doubt, and those of the doubtful that come after the limit when both are sorted, a limit first.
    counts = last - end - (np.searchsorted(doubtful, last) - np.searchsorted(doubtful, end))
    order = np.lexsort((np.append(tied, exact), np.append(owner, row)))
    is_limit = order < len(limits)
    limit, before = order[is_limit], np.cumsum(~is_limit)[is_limit]
    counts[limit] += np.searchsorted(row, owner[limit], 'right') - before
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
    checked against the float64 similarities of all matches. Memory: the query, a block of similarities for each thread,
    some of the gallery (none where that is in memory in float32, has no junk, and cosines are computed), and some
    numbers for each pair of one identity.

    Args:
        features: Query and gallery.
        metric: ``'cosine'`` or ``'euclidean'``.
        device: Device that computes the products; None for a GPU where there is one.
        progress: Whether to show a progress bar.
        distributed: Whether the processes of a group share the gallery: every one calls this with the same features,
            compares the queries with its part, and returns the whole outcome, equal to that of one process. On GPUs
            each takes its current one.

    Raises:
        UserError: No query has a match, the metric is unknown, products are set to a lower precision, or most features
            have no direction beside the largest.

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
    query, gallery = features.query_features, features.gallery_features
    similarities = _Similarities(features, metric, device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    rounding = (16 + 2 * gallery.shape[1] ** 0.5) * 2.0**-24
    underflow = gallery.shape[1] * 2.0**-124  # products that float32 rounds to 0
    ranked = np.flatnonzero(features.gallery_ids != -1)
    rank, processes = get_dist_info() if distributed else (0, 1)
    first, end = (len(ranked) * i // processes for i in (rank, rank + 1))
    known = _exact_pairs(query, gallery, pairs, features.query_ids, metric)
    # The matches of each query from the most similar one on, and how many wrong items are at least as similar.
    owner, limits = pairs.query[pairs.match], known[pairs.match]
    limits = limits[np.lexsort((-limits, owner))]
    first_pair, starts = (np.searchsorted(x, np.arange(len(query) + 1)) for x in (pairs.query, owner))
    wrong = np.zeros(len(owner), np.int64)
    # In each part of the gallery all matches of a query are looked up: with many of them the parts are larger.
    columns = int(np.clip(128 * len(owner) / len(query), *_COLUMNS))
    height, width = max(1, _SIMILARITIES // columns), min(max(1, BLOCK // gallery.shape[1]), columns)
    blocks = [slice(start, min(start + height, len(query))) for start in range(0, len(query), height)]
    parts = [ranked[start : min(start + width, end)] for start in range(first, end, width)]

    def count(rows: slice, items: np.ndarray, similarities_of: _Block) -> tuple[slice, np.ndarray]:
        computed, size = similarities_of(rows)
        block, bound = computed.cpu().numpy(), rounding * size + underflow
        own = np.arange(*first_pair[[rows.start, rows.stop]])
        own = own[(pairs.gallery[own] >= items[0]) & (pairs.gallery[own] <= items[-1])]
        cells = pairs.query[own] - rows.start, np.searchsorted(items, pairs.gallery[own])
        _check_rounding(block[cells], known[own], bound, computed.device)
        block[cells] = -np.inf
        own_limits = slice(*starts[[rows.start, rows.stop]])
        arguments = owner[own_limits] - rows.start, limits[own_limits], bound, query[rows], gallery, items, metric
        return own_limits, _count(block, *arguments)

    def calls() -> Iterator[Callable[[], tuple[slice, np.ndarray]]]:
        for items in track(parts, 'ranking', console=Console(stderr=True), transient=True, disable=not progress):
            similarities_of = similarities.to(items)
            for rows in blocks:
                yield partial(count, rows, items, similarities_of)

    for own_limits, counts in in_threads(calls()):
        wrong[own_limits] += counts
    if distributed:
        all_reduce(torch.from_numpy(wrong))  # shares its memory
    position = np.arange(len(owner)) - starts[owner]
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
            farthest = limits[-1] if len(limits) else -np.inf  # beyond it nothing counts, and need not be sorted
            wrong = distance[~(distance > farthest) & ~junk]  # NaN counts as the farthest
            # Items of the query's own identity are not wrong.
            not_farther = np.searchsorted(np.sort(wrong), limits, 'right')
            same = np.searchsorted(np.sort(distance[pairs.gallery[own]]), limits, 'right')
            ranks.append(not_farther - same + np.arange(1, len(limits) + 1))
        expected += len(distances)
    if expected != len(features.query_ids):
        raise ValueError(f'rank_rows: expected the distances of {len(features.query_ids)} queries, got {expected}')
    return retrieval_of(pairs, np.concatenate(ranks), expected)
