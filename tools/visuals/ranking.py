"""The nearest gallery items of some queries of a re-identification."""

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

from kd_plugins.errors import UserError
from kd_plugins.evaluation import ReIDFeatures, load_features, rank_matches
from kd_plugins.evaluation.features import BLOCK
from kd_plugins.utils.files import check_writable, written_whole

MOST = 50  # rows and columns of a picture; more would take gigabytes to draw
SIDE = 320  # pixels; larger images are made smaller, as a cell of a picture shows no more
FRAMES: dict[bool, dict[str, Any]] = {
    True: dict(color='#009e73', linestyle='solid'),
    False: dict(color='#d7301f', linestyle=(0, (2.5, 1.5))),
}
LEGEND = 'solid green frame: same identity, other camera;  dashed red frame: wrong'


class Ranking(NamedTuple):
    """The first gallery items of a query: rows of the gallery, their distances, and which are right."""

    items: np.ndarray
    distances: np.ndarray
    right: np.ndarray


def choose(ap: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Return the indices of the best (from the best on), median (descending) and worst (from the worst on) of ``ap``.

    Of equal ones the earlier counts as the better, so that best and worst overlap no more than they must.
    """
    order = np.argsort(-ap, kind='stable')
    start = max(0, len(order) - count) // 2
    return {'best': order[:count], 'median': order[start : start + count], 'worst': order[::-1][:count]}


def nearest(query: np.ndarray, gallery: np.ndarray, rows: np.ndarray, count: int, metric: str) -> np.ndarray:
    """Return which of the gallery's ``rows`` are the ``count`` nearest ones, up to the rounding of float32."""
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise UserError("a ranking needs faiss, which is not installed: pip install -e '.[reid]'") from error
    cosine = metric == 'cosine'
    heap = faiss.ResultHeap(1, count, keep_max=cosine)
    step = max(1, BLOCK // gallery.shape[1])
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        block = np.array(gallery[part], np.float32, order='C')
        if cosine:
            faiss.normalize_L2(block)
        values, found = faiss.knn(
            np.array(query, np.float32, ndmin=2),
            block,
            min(count, len(part)),
            faiss.METRIC_INNER_PRODUCT if cosine else faiss.METRIC_L2,
        )
        heap.add_result(values, part[found])
    heap.finalize()
    return heap.I[0]


def distances_to(query: np.ndarray, items: np.ndarray, metric: str) -> np.ndarray:
    """Return the distances of a query to some items in float64."""
    query, items = query.astype(np.float64), items.astype(np.float64)
    if metric == 'euclidean':
        return np.linalg.norm(items - query, axis=1)
    norms = np.linalg.norm(items, axis=1) * np.linalg.norm(query)
    return 1 - np.einsum('nd,d->n', items, query) / np.maximum(norms, 1e-24)


def rank_items(features: ReIDFeatures, query: int, top: int, metric: str) -> Ranking:
    """Rank the first ``top`` gallery items of a query as the evaluation does.

    Junk and items of the query's identity from its camera are left out; of equal distances wrong items come first.
    """
    identity, ids = features.query_ids[query], features.gallery_ids
    same = (ids == identity) & (identity > 0)
    rows = np.flatnonzero((ids != -1) & ~(same & (features.gallery_cams == features.query_cams[query])))
    count, feature = 2 * top, features.query_features[query]
    while True:
        found = nearest(feature, features.gallery_features, rows, min(count, len(rows)), metric)
        distances = distances_to(feature, features.gallery_features[found], metric)
        scale = 1 if metric == 'cosine' else distances.max() or 1
        keys = np.round(distances / scale, 12)
        order = np.lexsort((found, same[found], keys))
        # Items that tie with the last one, or differ from it only by the rounding of float32, must all be found.
        if count >= len(rows) or keys.max() > keys[order[top - 1]] + 1e-5:
            order = order[:top]
            return Ranking(found[order], np.maximum(distances[order], 0), same[found[order]])
        count *= 2


def read_image(path: str | bytes) -> np.ndarray:
    """Read an image as RGB, made smaller where it is large."""
    file = Path(os.fsdecode(path))
    if not file.is_file():
        raise UserError(
            f'{file}: the features name this image, and there is no such file; run this where their paths '
            'lead to the images'
        )
    image = cv2.imread(str(file), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f'{file}: cannot be read as an image; restore the file')
    scale = SIDE / max(image.shape)
    if scale < 1:
        height, width = (max(1, round(scale * x)) for x in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def draw_rankings(
    features: ReIDFeatures, queries: Iterable[int], ap: Iterable[float], rankings: Sequence[Ranking], title: str
) -> Figure:
    """Draw a row for each query: the query, then its gallery items in order."""
    rows = []
    for query, score, ranking in zip(queries, ap, rankings, strict=True):
        about = f'id {features.query_ids[query]}, cam {features.query_cams[query]}\nAP {score:#.3g}'
        # ranking() has checked that the features have paths.
        cells: list[tuple[str, Any, dict[str, Any]]] = [
            (about, features.query_paths[query], dict(color='black'))  # type: ignore[index]
        ]
        for rank, (item, distance, right) in enumerate(zip(*ranking, strict=True), 1):
            about = (
                f'{rank}:  {distance:#.4g}'.rstrip('.')
                + f'\nid {features.gallery_ids[item]}, cam {features.gallery_cams[item]}'
            )
            cells.append((about, features.gallery_paths[item], FRAMES[bool(right)]))  # type: ignore[index]
        rows.append([(about, read_image(path), frame) for about, path, frame in cells])
    # All lengths in inches. A solver for the layout would take minutes for some hundred images.
    shapes = np.array([image.shape for cells in rows for _, image, _ in cells])
    cell_width, head, margin, gap, above = 0.95, 0.65, 0.2, 0.15, 0.4
    cell_height = cell_width * float(np.clip(np.median(shapes[:, 0] / shapes[:, 1]), 0.5, 2.5))
    step_x, step_y = cell_width + gap, cell_height + above
    width = max(5.2, 2 * margin + gap + max(map(len, rows)) * step_x)
    height = head + len(rows) * step_y + margin
    figure = Figure((width, height), dpi=150)
    figure.text(margin / width, 1 - margin / 2 / height, f'{title}\n{LEGEND}', va='top', fontsize=9)
    for i, cells in enumerate(rows):
        for j, (about, image, frame) in enumerate(cells):
            left, bottom = margin + j * step_x + (gap if j else 0), height - head - (i + 1) * step_y
            axes = figure.add_axes((left / width, bottom / height, cell_width / width, cell_height / height))
            axes.imshow(image)
            axes.set(xticks=[], yticks=[], anchor='N')
            axes.set_title(about, fontsize=6.5, pad=5)
            axes.spines[:].set(linewidth=2.5 if j else 1, **frame)
            axes.spines[:].set_position(('outward', 1.5 if j else 0))  # thick frames beside the image, not on it
    return figure


def ranking(args: argparse.Namespace) -> None:
    """Draw the first gallery items of the best, the median and the worst queries."""
    for name in ('top', 'queries'):
        if not 1 <= getattr(args, name) <= MOST:
            raise UserError(f'--{name}: expected 1 to {MOST}, got {getattr(args, name)}')
    check_writable('--out', args.out / 'best.png')
    features = load_features(args.features)
    lacking = [name for name in ('query_paths', 'gallery_paths') if getattr(features, name) is None]
    if lacking:
        raise UserError(
            f'{args.features} lacks {" and ".join(lacking)}, which name the images; features written by '
            'ReIDMetric(save_to=...) or tools/eval_reid.py CONFIG CHECKPOINT hold them'
        )
    console = Console(stderr=True)
    retrieval = rank_matches(features, args.metric, progress=console.is_terminal)
    ap = retrieval.average_precision()
    written = []
    for name, chosen in track(
        choose(ap, args.queries).items(), 'drawing', console=console, transient=True, disable=not console.is_terminal
    ):
        queries, scores = retrieval.queries[chosen], ap[chosen]
        span = f'AP {scores.min():#.3g} to {scores.max():#.3g}'
        figure = draw_rankings(
            features,
            queries,
            scores,
            [rank_items(features, query, args.top, args.metric) for query in queries],
            f'{name} of {len(ap)} queries: {span};  mAP {ap.mean():#.3g}\n'
            f'above a gallery item: its rank and {args.metric} distance',
        )
        with written_whole(out := args.out / f'{name}.png') as partial:
            figure.savefig(partial, format='png')
        written.append(f'{out}: {span}')
    print(*written, sep='\n')
