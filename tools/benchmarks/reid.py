"""Retrieval compared with the similarity product and with the usual way, on drawn features."""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from benchmarks.timing import keep
from kd_plugins import evaluation
from kd_plugins.engine import join_group, leave_group
from kd_plugins.errors import UserError
from kd_plugins.evaluation import ReIDFeatures, Retrieval, load_features, rank_matches, rank_rows
from kd_plugins.evaluation.features import BLOCK

TOOL = Path(__file__).parents[1] / 'benchmark.py'
TOLERANCE = 1e-4


def reid_features(queries: int, gallery: int, dimensions: int, folder: Path) -> None:
    """Write features of people from 6 cameras, about 18 images each beside the distractors, as files ``.npy``.

    They are so close to each other that a ranking is neither perfect nor random.
    """
    rng = np.random.default_rng(0)
    people = max(2, gallery // 21)
    ids = np.where(rng.random(queries + gallery) < 0.175, 0, rng.integers(1, people + 1, queries + gallery))
    ids[:queries] = rng.integers(1, people + 1, queries)
    cameras = rng.integers(1, 7, queries + gallery)
    centres = rng.standard_normal((people + 1, dimensions), np.float32)
    for side, rows in (('query', slice(0, queries)), ('gallery', slice(queries, None))):
        np.save(folder / f'{side}_ids.npy', ids[rows])
        np.save(folder / f'{side}_cams.npy', cameras[rows])
        out = np.lib.format.open_memmap(folder / f'{side}_features.npy', 'w+', np.float32, (len(ids[rows]), dimensions))
        for start in range(0, len(out), 10_000):
            own = ids[rows][start : start + 10_000]
            x = 3.5 * rng.standard_normal((len(own), dimensions), np.float32)
            out[start : start + 10_000] = x + (own > 0)[:, None] * centres[own]


def usual_way(features: ReIDFeatures, device: str) -> dict[str, float]:
    """Score as popular code does: argsort of the whole distance matrix, precision at every rank of every query."""
    query, gallery = (
        F.normalize(torch.from_numpy(x).to(device)) for x in (features.query_features, features.gallery_features)
    )
    order = np.argsort((1 - query @ gallery.T).cpu().numpy(), axis=1)
    matches = features.gallery_ids[order] == features.query_ids[:, None]
    precisions = []
    for row, match in enumerate(matches):
        match = match[~match | (features.gallery_cams[order[row]] != features.query_cams[row])]
        if match.any():
            precision = np.asarray([found / rank for rank, found in enumerate(match.cumsum(), 1)])
            precisions.append((precision * match).sum() / match.sum())
    return {'mAP': float(np.mean(precisions))}


def evaluation_of(features: ReIDFeatures, device: str, progress: bool = False) -> Retrieval:
    """Score the package's way."""
    return rank_matches(features, device=device, progress=progress and is_main_process(), distributed=True)


def similarity_product(features: ReIDFeatures, device: str) -> None:
    """Only multiply the features, gallery block by gallery block."""
    query = torch.from_numpy(np.array(features.query_features)).to(device)
    for start in range(0, len(features.gallery_features), step := BLOCK // query.shape[1]):
        gallery = torch.from_numpy(np.array(features.gallery_features[start : start + step])).to(device)
        query @ gallery.T


def dense_reranking(features: ReIDFeatures, device: str, k1: int = 20, k2: int = 6, weight: float = 0.3) -> Retrieval:
    """Re-rank the usual way: every N x N matrix in memory, loops over the rows."""
    x = np.concatenate((features.query_features, features.gallery_features))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    n, queries, half = len(x), len(features.query_ids), int(np.around(k1 / 2)) + 1
    distance = 2 - 2 * x @ x.T
    distance /= distance.max(1, keepdims=True)
    ranking = np.argsort(distance, axis=1)

    def reciprocal(i: int, k: int) -> np.ndarray:
        near = ranking[i, :k]
        return near[(ranking[near, :k] == i).any(1)]

    encoding = np.zeros_like(distance)
    for i in range(n):
        own = reciprocal(i, k1 + 1)
        parts = [own]
        for candidate in own:
            theirs = reciprocal(candidate, half)
            if len(np.intersect1d(theirs, own)) > 2 / 3 * len(theirs):
                parts.append(theirs)
        support = np.unique(np.concatenate(parts))
        values = np.exp(-distance[i, support])
        encoding[i, support] = values / values.sum()
    averaged = np.zeros_like(encoding)
    for i in range(n):
        averaged[i] = encoding[ranking[i, :k2]].mean(0)
    encoding = averaged
    inverted = [np.flatnonzero(encoding[:, i]) for i in range(n)]
    jaccard = np.zeros((queries, n), np.float32)
    for i in range(queries):
        shared = np.zeros(n, np.float32)
        for j in np.flatnonzero(encoding[i]):
            shared[inverted[j]] += np.minimum(encoding[i, j], encoding[inverted[j], j])
        jaccard[i] = 1 - shared / (2 - shared)
    final = (1 - weight) * jaccard + weight * distance[:queries]
    return rank_rows([(slice(0, queries), final[:, queries:])], features)


def sparse_reranking(features: ReIDFeatures, device: str) -> Retrieval:
    """Re-rank the package's way."""
    return rank_rows(evaluation.KReciprocal(features.query_features, features.gallery_features).rows(), features)


REID: dict[str, Callable[..., Any]] = {
    'evaluation': evaluation_of,
    'product': similarity_product,
    'usual way': usual_way,
    're-ranking': sparse_reranking,
    'dense re-ranking': dense_reranking,
    'evaluation with a bar': partial(evaluation_of, progress=True),
}
# Queries, gallery items, dimensions, and what is measured, all relative to the first.
REID_PARTS = {
    'market': (3_368, 15_913, 2_048, ('evaluation', 'product', 'usual way')),
    'rerank': (3_368, 15_913, 2_048, ('re-ranking', 'dense re-ranking')),
    'million': (3_368, 1_000_000, 512, ('evaluation with a bar', 'product')),
}


def add_options(command: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    command.add_argument('--parts', nargs='+', choices=REID_PARTS, help='(default: all that is installed for)')
    command.add_argument('--scale', type=float, default=1.0, help='factor of the numbers of items and dimensions')
    command.add_argument('--processes', type=int, default=1, help='also evaluate by so many, which share the threads')
    command.add_argument('--folder', help="where the drawn features lie meanwhile, some 2 GiB (default: the system's)")
    command.add_argument('--repeats', type=int, help='(default: 5 of market, 1 of the others, which take long)')
    command.set_defaults(measure=reid)


def add_run_options(command: argparse.ArgumentParser) -> None:
    """Describe the command line that :func:`reid` starts."""
    command.add_argument('features')
    command.add_argument('names', nargs='+', choices=REID)
    command.add_argument('--resident', action='store_true')
    command.add_argument('--repeats', type=int, default=1)
    command.add_argument('--launcher', choices=['none', 'pytorch'], default='none')
    command.set_defaults(measure=reid_run)


def resident(which: str) -> int:
    """Return the bytes of this process in memory: ``'VmRSS'`` now, ``'VmHWM'`` at its peak."""
    (kilobytes,) = re.findall(rf'{which}:\s+(\d+)', Path('/proc/self/status').read_text())
    return 1024 * int(kilobytes)


def reid_run(args: argparse.Namespace) -> None:
    """Run some of the measurements in turn, in this process, and print their times and memory."""
    join_group(args.launcher)
    features = load_features(args.features)
    if args.resident:
        features = replace(
            features,
            query_features=np.array(features.query_features),
            gallery_features=np.array(features.gallery_features),
        )
    start = torch.ones(2, 2, device=args.device)
    (start @ start).sort()  # starts the threads, or loads a GPU's libraries
    Path('/proc/self/clear_refs').write_text('5')  # resets the peak, which was that of loading
    held = resident('VmRSS')
    results: dict[str, dict[str, Any]] = {name: dict(seconds=[]) for name in args.names}
    for _ in range(args.repeats):
        for name, result in results.items():
            began = time.perf_counter()
            found = REID[name](features, args.device)
            if args.device != 'cpu':
                torch.cuda.synchronize(args.device)
            result['seconds'].append(time.perf_counter() - began)
            result |= found.summary() if isinstance(found, Retrieval) else found or {}
    peak = resident('VmHWM')
    memory = dict(peak_bytes=peak, added_bytes=peak - held)
    if args.device != 'cpu':
        memory |= dict(device_bytes=torch.cuda.max_memory_allocated(args.device))
    if is_main_process():
        print(json.dumps(dict(runs=results) | memory))
    leave_group()


def reid(args: argparse.Namespace) -> None:
    """Measure retrieval: times in turn in one process, memory in a process for each part."""
    parts = {}
    for part in args.parts or [part for part in REID_PARTS if part != 'rerank' or find_spec('faiss')]:
        *sizes, names = REID_PARTS[part]
        queries, gallery, dimensions = (max(1, int(x * args.scale)) for x in sizes)
        repeats = args.repeats or (5 if part == 'market' else 1)
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            reid_features(queries, gallery, dimensions, Path(folder))

            def run(
                names: Sequence[str], repeats: int, processes: int = 1, folder: str = folder, part: str = part
            ) -> dict[str, Any]:
                command = [sys.executable, str(TOOL), 'reid-run', folder, *names, '--repeats', str(repeats)]
                command += ['--threads', str(max(1, args.threads // processes)), '--device', args.device]
                if processes > 1:
                    start = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes)]
                    command[1:1] = start
                    command += ['--launcher', 'pytorch']
                command += ['--resident'] * (part != 'million')
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
                if done.returncode:
                    raise UserError(f'{part}: measuring {", ".join(names)} failed, see the error above')
                return json.loads(done.stdout.splitlines()[-1])

            results = run(names, repeats)['runs']
            for name in names:
                results[name] |= {k: v for k, v in run([name], 1).items() if k != 'runs'}
            if args.processes > 1 and part != 'rerank':
                shared = run(names[:1], repeats, args.processes)
                results[f'{args.processes} processes'] = shared.pop('runs')[names[0]] | shared
        own = results[names[0]]
        memory = {'peak_bytes': 'MiB at its peak', 'added_bytes': 'MiB added'}
        if args.device != 'cpu':
            memory |= {'device_bytes': 'MiB on the GPU'}
        table = Table(
            '',
            's (min–max)',
            'times as long',
            'mAP',
            *memory.values(),
            title=f'{part}: {queries} queries, {gallery} gallery items, {dimensions} dimensions, '
            f'{args.device}, {args.threads} threads',
        )
        for name, result in results.items():
            result['ratio'] = median(x / y for x, y in zip(result['seconds'], own['seconds'], strict=True))
            seconds = result['seconds']
            table.add_row(
                name,
                f'{median(seconds):.2f} ({min(seconds):.2f}–{max(seconds):.2f})',
                f'{result["ratio"]:.2f}',
                f'{result["mAP"]:.6f}' if 'mAP' in result else '',
                *(f'{result[key] / 2**20:.0f}' for key in memory),
            )
        Console(width=max(110, Console().width)).print(table)
        parts[part] = dict(queries=queries, gallery=gallery, dimensions=dimensions, results=results)
        keep(args, dict(numpy=np.__version__, parts=parts))
        scores = [result['mAP'] for result in results.values() if 'mAP' in result]
        if not max(scores) - min(scores) <= TOLERANCE:
            raise UserError(f'{part}: the ways to score disagree by more than {TOLERANCE:g}, see the table')
