"""Measure against plain reference forms, on this machine.

    python tools/benchmark.py losses --json losses.json
    python tools/benchmark.py reid

losses    every loss, forward and backward, beside its literal form: all pairs by broadcasting, as popular code does.
          Value and gradient of both are compared too; the exit status is 1 where they disagree.
reid      retrieval on drawn features, on the CPU: the evaluation at the size of Market-1501 beside the similarity
          product alone (torch's own, and the faster one that the package takes) and beside the usual way (a full
          argsort and a loop over the queries); re-ranking beside its dense form; and a memory-mapped gallery of a
          million items. The exit status is 1 where the mAPs disagree.

Time is the median of interleaved repetitions, a ratio of retrieval's the median of the single ratios. Of the losses,
memory is the peak that a forward and backward pass adds to its inputs: on CUDA by torch's own statistics; on a CPU the
highest sum of the allocations and frees that torch.profiler sees, which is exact and free of what ran before, where a
process's resident size is neither (it leaves out the scratch space of the matrix library). Of retrieval, memory is the
process's largest resident size while it ran, in a process of its own, and how much of it the run added.
"""

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
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from kd_plugins import functional
from kd_plugins.errors import UserError, one_line_errors
from kd_plugins.evaluation import KReciprocal, ReIDFeatures, Retrieval, load_features, rank_matches, rank_rows
from kd_plugins.evaluation.features import BLOCK
from kd_plugins.evaluation.products import inner_products, operand

Loss = Callable[[Any, Any], Tensor]
TOLERANCE = 1e-4


class Case(NamedTuple):
    """A loss, its literal form, and the shape of student and teacher (``pairs``: of either map of their pairs)."""

    name: str
    shape: tuple[int, ...]
    loss: Loss
    reference: Loss
    pairs: bool = False


def nst_reference(kernel: str) -> Loss:
    """Return MMD^2 from the kernels of all pairs of normalised maps, as one (B, C, C, HW) tensor each."""

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        s, t = (F.normalize(x.flatten(2), dim=2) for x in (student, teacher))
        pairs = [(x[:, :, None], y[:, None]) for x, y in ((s, s), (t, t), (s, t))]
        if kernel == 'gaussian':
            distances = [(x - y).square().sum(-1) for x, y in pairs]
            variance = distances[2].detach().mean((1, 2), keepdim=True)
            kernels = [(-x / (2 * variance)).exp() for x in distances]
        else:
            kernels = [(x * y).sum(-1) ** (2 if kernel == 'poly' else 1) for x, y in pairs]
        return kernels[0].mean() + kernels[1].mean() - 2 * kernels[2].mean()

    return loss


def rkd_angle_reference(student: Tensor, teacher: Tensor) -> Tensor:
    """Return RKD-A from the (B, B, B, D) products of all edges that meet in a sample."""

    def cosines(x: Tensor) -> Tensor:
        edges = F.normalize(x[None] - x[:, None], dim=2)
        return (edges[:, :, None] * edges[:, None]).sum(-1)

    n = len(student)
    return F.smooth_l1_loss(cosines(student), cosines(teacher), reduction='sum') / (n * (n - 1) * (n - 2))


def rkd_distance_reference(student: Tensor, teacher: Tensor) -> Tensor:
    """Return RKD-D from the (B, B, D) differences of all pairs."""
    pairs = len(student) * (len(student) - 1)

    def relative(x: Tensor) -> Tensor:
        distances = torch.linalg.vector_norm(x[:, None] - x[None], dim=2)
        return distances / (distances.sum() / pairs)

    return F.smooth_l1_loss(relative(student), relative(teacher), reduction='sum') / pairs


def sp_reference(student: Tensor, teacher: Tensor) -> Tensor:
    """Return SP with its two Gram matrices spelt out."""
    s, t = (F.normalize(x.flatten(1) @ x.flatten(1).T, dim=1) for x in (student, teacher))
    return (s - t).pow(2).sum() / len(s) ** 2


def at_reference(student: Tensor, teacher: Tensor) -> Tensor:
    """Return AT in the paper's form."""
    s, t = (F.normalize(x.pow(2).sum(1).flatten(1), dim=1) for x in (student, teacher))
    return (s - t).pow(2).sum(1).sqrt().mean()


def fsp_reference(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return FSP from the (B, C, C, HW) products of all pairs of maps."""
    s, t = ((x.flatten(2)[:, :, None] * y.flatten(2)[:, None]).mean(-1) for x, y in (student, teacher))
    return (s - t).pow(2).sum((1, 2)).mean()


def kd_reference(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 16 KL(teacher || student) at temperature 4, from probabilities."""
    s, t = (F.softmax(x / 4, dim=1) for x in (student, teacher))
    return 16 * (t * (t.log() - s.log())).sum(1).mean()


def loss_cases(large: bool) -> list[Case]:
    """List the losses to measure; ``large`` adds one whose literal form takes some 20 GiB."""

    cifar = (128, 64, 8, 8)
    return [
        *(Case(f'NST {kernel}', shape, partial(functional.nst_loss, kernel=kernel), nst_reference(kernel))
          for shape in ((64, 32, 16, 16), (32, 128, 8, 8), (64, 256, 4, 4))
          for kernel in ('linear', 'poly', 'gaussian')),
        *(Case('RKD-A', shape, functional.rkd_angle_loss, rkd_angle_reference)
          for shape in [(64, 128), (128, 512)][:1 + large]),
        Case('RKD-D', (128, 512), functional.rkd_distance_loss, rkd_distance_reference),
        Case('SP', cifar, functional.sp_loss, sp_reference),
        Case('AT', cifar, functional.at_loss, at_reference),
        Case('FSP', cifar, functional.fsp_loss, fsp_reference, pairs=True),
        Case('KD', (128, 100), functional.kd_loss, kd_reference),
        Case('FitNet', cifar, functional.fitnet_loss, lambda s, t: 0.5 * (s - t).pow(2).mean()),
    ]


def inputs_of(case: Case, device: torch.device) -> tuple[Any, Any, list[Tensor]]:
    """Return student, teacher and the student's leaves: activations after a ReLU, the teacher's stronger."""
    generator = torch.Generator(device).manual_seed(0)

    def features(offset: float) -> Tensor:
        x = torch.randn(case.shape, generator=generator, device=device)
        return (x + offset).relu() if len(case.shape) == 4 else 3 * x

    student = [features(0.0).requires_grad_() for _ in range(1 + case.pairs)]
    teacher = [features(0.5) for _ in student]
    return (student, teacher, student) if case.pairs else (student[0], teacher[0], student)


def seconds(step: Callable[[], Any], device: torch.device) -> float:
    """Return how long one call takes."""
    synchronise = partial(torch.cuda.synchronize, device) if device.type == 'cuda' else lambda: None
    synchronise()
    start = time.perf_counter()
    step()
    synchronise()
    return time.perf_counter() - start


def peak_memory(step: Callable[[], Any], device: torch.device) -> int:
    """Return the bytes that a call holds at its peak, beyond what was held before."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'trace.json')
        record.export_chrome_trace(str(path))
        events = [e for e in json.loads(path.read_text())['traceEvents'] if e['name'] == '[memory]']
    return max(accumulate(e['args']['Bytes'] for e in sorted(events, key=lambda e: e['ts'])))


def measure(case: Case, repeats: int, device: torch.device) -> dict[str, Any]:
    """Compare a loss with its literal form: agreement, memory, time."""
    student, teacher, leaves = inputs_of(case, device)

    def passes(loss: Loss) -> Callable[[], list[Tensor]]:
        def step() -> list[Tensor]:
            value = loss(student, teacher)
            return [value.detach(), *torch.autograd.grad(value, leaves)]

        return step

    steps = {'kd_plugins': passes(case.loss), 'reference': passes(case.reference)}
    (value, *grads), (expected, *expected_grads) = (step() for step in steps.values())
    grad, expected_grad = (torch.cat([x.flatten() for x in parts]) for parts in (grads, expected_grads))
    result: dict[str, Any] = dict(
        name=case.name, shape=list(case.shape), value_disagreement=((value - expected).abs() / expected.abs()).item(),
        gradient_disagreement=((grad - expected_grad).norm() / expected_grad.norm()).item())
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            times[name].append(1e3 * seconds(step, device))
    for name, step in steps.items():
        result[name] = dict(ms=median(times[name]), ms_min=min(times[name]), ms_max=max(times[name]),
                            peak_bytes=peak_memory(step, device))
    own, reference = result['kd_plugins'], result['reference']
    return result | dict(speedup=reference['ms'] / own['ms'], memory_ratio=own['peak_bytes'] / reference['peak_bytes'])


def print_table(results: Sequence[dict[str, Any]], title: str) -> None:
    """Print one row a case."""
    table = Table('loss', 'shape', 'ms (min–max)', 'literal ms (min–max)', 'times faster', 'MiB', 'literal MiB',
                  'memory ratio', 'value off by', 'gradient off by', title=title)
    for r in results:
        sides = [r['kd_plugins'], r['reference']]
        table.add_row(
            r['name'], '×'.join(map(str, r['shape'])),
            *(f'{x["ms"]:.2f} ({x["ms_min"]:.2f}–{x["ms_max"]:.2f})' for x in sides), f'{r["speedup"]:.1f}',
            *(f'{x["peak_bytes"] / 2**20:.2f}' for x in sides), f'{r["memory_ratio"]:.4f}',
            f'{r["value_disagreement"]:.1e}', f'{r["gradient_disagreement"]:.1e}')
    Console(width=max(170, Console().width)).print(table)


def losses(args: argparse.Namespace) -> None:
    """Measure the losses."""
    device = torch.device(args.device)
    results = [measure(case, args.repeats, device) for case in loss_cases(args.large)]
    about = dict(device=torch.cuda.get_device_name(device) if device.type == 'cuda' else 'cpu',
                 threads=torch.get_num_threads(), repeats=args.repeats, torch=torch.__version__)
    print_table(results, ', '.join(f'{k} {v}' for k, v in about.items()))
    if args.json:
        Path(args.json).write_text(json.dumps(about | dict(cases=results), indent=2) + '\n')
    # Written so that a value that is no number counts as a disagreement.
    wrong = [f'{r["name"]} {tuple(r["shape"])}' for r in results
             if not max(r['value_disagreement'], r['gradient_disagreement']) <= TOLERANCE]
    if wrong:
        raise UserError(f'{", ".join(wrong)} and the literal form differ by more than {TOLERANCE:g}: see the table')


def reid_features(queries: int, gallery: int, dimensions: int, folder: Path) -> None:
    """Write features of people from 6 cameras, about 18 images each beside the distractors, as files ``.npy``.

    They lie so near to each other that a ranking is neither perfect nor random.
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
            own = ids[rows][start:start + 10_000]
            x = 3.5 * rng.standard_normal((len(own), dimensions), np.float32)
            out[start:start + 10_000] = x + (own > 0)[:, None] * centres[own]


def usual_way(features: ReIDFeatures) -> dict[str, float]:
    """Score as popular code does: argsort of the whole distance matrix, precision at every rank of every query."""
    query, gallery = (F.normalize(torch.from_numpy(x)) for x in (features.query_features, features.gallery_features))
    order = np.argsort(1 - (query @ gallery.T).numpy(), axis=1)
    matches = features.gallery_ids[order] == features.query_ids[:, None]
    precisions = []
    for row, match in enumerate(matches):
        match = match[~match | (features.gallery_cams[order[row]] != features.query_cams[row])]
        if match.any():
            precision = np.asarray([found / rank for rank, found in enumerate(match.cumsum(), 1)])
            precisions.append((precision * match).sum() / match.sum())
    return {'mAP': float(np.mean(precisions))}


def similarity_product(features: ReIDFeatures, library: bool = False) -> None:
    """Multiply the features, gallery block by gallery block, and nothing else, as torch does or as the package does."""
    query = torch.from_numpy(np.array(features.query_features))
    for start in range(0, len(features.gallery_features), step := BLOCK // query.shape[1]):
        gallery = torch.from_numpy(np.array(features.gallery_features[start:start + step]))
        inner_products(operand(query), operand(gallery)) if library else query @ gallery.T


def dense_reranking(features: ReIDFeatures, k1: int = 20, k2: int = 6, weight: float = 0.3) -> Retrieval:
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


def sparse_reranking(features: ReIDFeatures) -> Retrieval:
    """Re-rank the package's way."""
    return rank_rows(KReciprocal(features.query_features, features.gallery_features).rows(), features)


REID = {'evaluation': partial(rank_matches, device='cpu'), 'product': similarity_product,
        'product by oneDNN': partial(similarity_product, library=True), 'usual way': usual_way,
        're-ranking': sparse_reranking, 'dense re-ranking': dense_reranking,
        'evaluation with a bar': partial(rank_matches, device='cpu', progress=True)}
# Queries, gallery items, dimensions, and what is measured, against the first of it.
REID_PARTS = {
    'market': (3_368, 15_913, 2_048, ('evaluation', 'product', 'product by oneDNN', 'usual way')),
    'rerank': (3_368, 15_913, 2_048, ('re-ranking', 'dense re-ranking')),
    'million': (3_368, 1_000_000, 512, ('evaluation with a bar', 'product', 'product by oneDNN')),
}


def resident(which: str) -> int:
    """Return the bytes of this process in memory: ``'VmRSS'`` now, ``'VmHWM'`` at its peak."""
    return 1024 * int(re.search(rf'{which}:\s+(\d+)', Path('/proc/self/status').read_text())[1])


def reid_run(args: argparse.Namespace) -> None:
    """Do each of some things in turn, in this process, and print what it took."""
    features = load_features(args.features)
    if args.resident:
        features = replace(features, query_features=np.array(features.query_features),
                           gallery_features=np.array(features.gallery_features))
    torch.ones(2, 2) @ torch.ones(2, 2)  # starts the threads
    Path('/proc/self/clear_refs').write_text('5')  # forgets the peak, which came with the process or was the loading's
    held = resident('VmRSS')
    results: dict[str, dict[str, Any]] = {name: dict(seconds=[]) for name in args.names}
    for _ in range(args.repeats):
        for name, result in results.items():
            start = time.perf_counter()
            found = REID[name](features)
            result['seconds'].append(time.perf_counter() - start)
            result |= found.summary() if isinstance(found, Retrieval) else found or {}
    peak = resident('VmHWM')
    print(json.dumps(dict(runs=results, peak_bytes=peak, added_bytes=peak - held)))


def reid(args: argparse.Namespace) -> None:
    """Measure retrieval: times in turn in one process, memory in a process for each."""
    parts = {}
    for part in args.parts:
        *sizes, names = REID_PARTS[part]
        queries, gallery, dimensions = (max(1, int(x * args.scale)) for x in sizes)
        repeats = args.repeats if part == 'market' else 1
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            reid_features(queries, gallery, dimensions, Path(folder))

            def run(names: Sequence[str], repeats: int, folder: str = folder, part: str = part) -> dict[str, Any]:
                command = [sys.executable, __file__, 'reid-run', folder, *names, '--repeats', str(repeats),
                           '--threads', str(args.threads), *['--resident'] * (part != 'million')]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
                if done.returncode:
                    raise UserError(f'{part}: measuring {", ".join(names)} failed, see the error above')
                return json.loads(done.stdout.splitlines()[-1])

            results = run(names, repeats)['runs']
            for name in names:
                results[name] |= {k: v for k, v in run([name], 1).items() if k != 'runs'}
        own = results[names[0]]
        table = Table('', 's (min–max)', 'times as long', 'mAP', 'MiB at its peak', 'MiB added',
                      title=f'{part}: {queries} queries, {gallery} gallery items, {dimensions} dimensions, '
                            f'{args.threads} threads')
        for name, result in results.items():
            result['ratio'] = median(x / y for x, y in zip(result['seconds'], own['seconds'], strict=True))
            seconds = result['seconds']
            table.add_row(name, f'{median(seconds):.2f} ({min(seconds):.2f}–{max(seconds):.2f})',
                          f'{result["ratio"]:.2f}', f'{result["mAP"]:.6f}' if 'mAP' in result else '',
                          *(f'{result[key] / 2**20:.0f}' for key in ('peak_bytes', 'added_bytes')))
        Console(width=max(110, Console().width)).print(table)
        parts[part] = dict(queries=queries, gallery=gallery, dimensions=dimensions, results=results)
        if args.json:
            about = dict(threads=args.threads, torch=torch.__version__, numpy=np.__version__, parts=parts)
            Path(args.json).write_text(json.dumps(about, indent=2) + '\n')
        scores = [result['mAP'] for result in results.values() if 'mAP' in result]
        if not max(scores) - min(scores) <= TOLERANCE:
            raise UserError(f'{part}: the ways to score disagree by more than {TOLERANCE:g}, see the table')


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    command = commands.add_parser('losses', help='every loss beside its literal form')
    command.add_argument('--large', action='store_true', help='also RKD-A at 128×512, whose literal form needs 20 GiB')
    command.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    command.set_defaults(run_command=losses)
    command = commands.add_parser('reid', help='retrieval beside the usual way')
    command.add_argument('--parts', nargs='+', choices=REID_PARTS, default=list(REID_PARTS), help='(default: all)')
    command.add_argument('--scale', type=float, default=1., help='factor of the numbers of items and dimensions')
    command.add_argument('--folder', help='where the drawn features lie meanwhile, some 2 GiB (default: the system\'s)')
    command.set_defaults(run_command=reid)
    for command in commands.choices.values():
        command.add_argument('--repeats', type=int, default=5)
        command.add_argument('--json', metavar='FILE', help='also write the measurements here')
    command = commands.add_parser('reid-run')  # what reid starts
    command.add_argument('features')
    command.add_argument('names', nargs='+', choices=REID)
    command.add_argument('--resident', action='store_true')
    command.add_argument('--repeats', type=int, default=1)
    command.set_defaults(run_command=reid_run)
    for command in commands.choices.values():
        command.add_argument('--threads', type=int, default=torch.get_num_threads(), help='number of CPU threads')
    args = parser.parse_args(argv)
    if args.repeats < 1:
        raise UserError(f'--repeats: expected at least 1, got {args.repeats}')
    torch.set_num_threads(args.threads)
    args.run_command(args)


if __name__ == '__main__':
    with one_line_errors():
        main()
