"""Every loss beside its literal form: all pairs by broadcasting, as popular code does."""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import peak_memory, seconds
from kd_plugins import functional
from kd_plugins.errors import UserError

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
