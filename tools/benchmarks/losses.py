"""Every loss compared with its literal form: all pairs by broadcasting, as popular code does."""

import argparse
from collections.abc import Callable, Sequence
from functools import cache, partial
from math import exp, prod
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import Machine, keep, machine_of, peak_memory, seconds
from kd_plugins import functional
from kd_plugins.errors import UserError

Loss = Callable[[Any, Any], Tensor]
TOLERANCE = 3e-4  # relative to a literal form in float32, whose long sums are themselves off by 1e-4
LEAST = dict(cpu=0.05, cuda=0.02)  # seconds that a measurement takes at least
PATIENCE = 10  # seconds after which a case is not repeated


class Case(NamedTuple):
    """A loss, its literal form, and the shape of student and teacher.

    Attributes:
        pairs: The shape is that of either map of their pairs.
        literal: Numbers in the largest tensor of the literal form.
        tolerance: Relative difference from the literal form that is allowed in float32.
        products: Operations in the matrix products that a forward and backward pass needs.
    """

    name: str
    shape: tuple[int, ...]
    loss: Loss
    reference: Loss
    pairs: bool = False
    literal: int = 0
    products: int = 0
    tolerance: float = TOLERANCE


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


def rkd_angle_published(student: Tensor, teacher: Tensor) -> Tensor:
    """Return RKD-A as its authors' program does: (B, B, D) edges, the cosines by a batch of products."""

    def cosines(x: Tensor) -> Tensor:
        edges = F.normalize(x[None] - x[:, None], dim=2)
        return edges @ edges.mT

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
    """Return SP from its two Gram matrices."""
    s, t = (F.normalize(x.flatten(1) @ x.flatten(1).T, dim=1) for x in (student, teacher))
    return (s - t).pow(2).sum() / len(s) ** 2


def pkt_reference(student: Tensor, teacher: Tensor) -> Tensor:
    """Return PKT as its authors' program does."""

    def probabilities(x: Tensor) -> Tensor:
        x = x.flatten(1)
        x = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-7)
        similarities = (x @ x.T + 1) / 2
        return similarities / similarities.sum(1, keepdim=True)

    s, t = probabilities(student), probabilities(teacher)
    return (t * ((t + 1e-7) / (s + 1e-7)).log()).mean()


def variances(maps: Tensor) -> Tensor:
    """Return a variance for each channel."""
    return torch.linspace(1, 5, maps.shape[1], device=maps.device)


def vid(student: Tensor, teacher: Tensor) -> Tensor:
    """Return VID behind its means."""
    return functional.vid_loss(student, teacher, variances(student))


def vid_reference(student: Tensor, teacher: Tensor) -> Tensor:
    """Return VID behind its means as its authors' program does."""
    variance = variances(student).view(1, -1, 1, 1)
    return (0.5 * ((student - teacher) ** 2 / variance + variance.log())).mean()


def at_reference(student: Tensor, teacher: Tensor) -> Tensor:
    """Return AT in the paper's form."""
    s, t = (F.normalize(x.pow(2).sum(1).flatten(1), dim=1) for x in (student, teacher))
    return (s - t).pow(2).sum(1).sqrt().mean()


def fsp_reference(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return FSP from the (B, C, C, HW) products of all pairs of maps."""
    s, t = ((x.flatten(2)[:, :, None] * y.flatten(2)[:, None]).mean(-1) for x, y in (student, teacher))
    return (s - t).pow(2).sum((1, 2)).mean()


def pkd_reference(student: Tensor, teacher: Tensor) -> Tensor:
    """Return PKD from its standardised maps, as its authors' program does."""

    def standardised(x: Tensor) -> Tensor:
        channels = x.movedim(1, 0).flatten(1)
        channels = (channels - channels.mean(1, keepdim=True)) / (channels.std(1, correction=0, keepdim=True) + 1e-6)
        return channels.unflatten(1, (len(x), *x.shape[2:])).movedim(0, 1)

    return F.mse_loss(standardised(student), standardised(teacher)) / 2


def cwd_reference(student: Tensor, teacher: Tensor) -> Tensor:
    """Return CWD from its distributions over the positions, as its authors' program does."""
    s, t = (x.flatten(2).softmax(-1) for x in (student, teacher))
    return F.kl_div(s.log(), t, reduction='sum') / (len(s) * s.shape[1])


def soft_focal(student: Tensor, teacher: Tensor) -> Tensor:
    """Return CrossKD's comparison of scores, with equal weights."""
    return functional.soft_focal_loss(student, teacher, student.new_ones(len(student)))


def soft_focal_reference(student: Tensor, teacher: Tensor) -> Tensor:
    """Return CrossKD's comparison of scores as its authors' program does."""
    weight, target = student.new_ones(len(student))[:, None].repeat(1, student.shape[1]), teacher.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(student, target, reduction='none')
    return (entropy * (student.sigmoid() - target).abs().pow(1.0) * weight).sum()


ENTRIES, NEGATIVES, TAU = 50_000, 16_384, 0.07  # CRD's on CIFAR-100


@cache
def contrast_of(shape: tuple[int, int], device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a bank, the classes of the images and of its entries, and negatives drawn for each image."""
    generator = torch.Generator().manual_seed(0)
    bank = F.normalize(torch.randn(ENTRIES, shape[1], generator=generator))
    classes = torch.arange(ENTRIES) % 100
    labels = classes[: shape[0]]
    drawn = [torch.randperm(ENTRIES, generator=generator) for _ in labels]
    negatives = torch.stack([x[classes[x] != label][:NEGATIVES] for x, label in zip(drawn, labels, strict=True)])
    bank = bank.to(dtype=torch.promote_types(dtype, torch.float32))
    return bank.to(device), labels.to(device), classes.to(device), negatives.to(device)


def crd(student: Tensor, teacher: Tensor) -> Tensor:
    """Return CRD of one direction."""
    bank, labels, classes, _ = contrast_of(tuple(student.shape), str(student.device), teacher.dtype)
    student, teacher = (F.normalize(x.to(bank.dtype)) for x in (student, teacher))
    return functional.crd_loss(student, teacher, bank, labels, classes, NEGATIVES, TAU)


def crd_reference(student: Tensor, teacher: Tensor) -> Tensor:
    """Return CRD of one direction as its authors' program does, which gathers the negatives drawn for each image."""
    bank, _, _, negatives = contrast_of(tuple(student.shape), str(student.device), teacher.dtype)
    (n, d), noise = student.shape, NEGATIVES / ENTRIES
    entries = bank.index_select(0, negatives.flatten()).view(n, NEGATIVES, d)
    constant = ENTRIES * exp(1 / (2 * d * TAU**2))
    student, teacher = (F.normalize(x.to(bank.dtype)) for x in (student, teacher))
    drawn = (torch.bmm(entries, student[:, :, None]).squeeze(2) / TAU).exp() / constant
    own = ((student * teacher).sum(1) / TAU).exp() / constant
    return -((own / (own + noise)).log().sum() + (noise / (drawn + noise)).log().sum()) / n


def reviewkd_reference(student: Tensor, teacher: Tensor) -> Tensor:
    """Return ReviewKD's HCL from both pooled maps, as its authors' program does."""
    loss, total = F.mse_loss(student, teacher), 1.0
    sides = [side for side in (4, 2, 1) if side < student.shape[2]]
    for i, side in enumerate(sides, 1):
        weight = 0.5**i
        pooled, target = (F.adaptive_avg_pool2d(x, side) for x in (student, teacher))
        loss += weight * F.mse_loss(pooled, target)
        total += weight
    return loss / total


def kd_reference(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 16 KL(teacher || student) at temperature 4, from probabilities."""
    s, t = (F.softmax(x / 4, dim=1) for x in (student, teacher))
    return 16 * (t * (t.log() - s.log())).sum(1).mean()


def lskd_reference(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 4 KL(teacher || student) of standardised logits at temperature 2, as its authors' program does."""
    s, t = ((x - x.mean(-1, keepdim=True)) / (1e-7 + x.std(-1, keepdim=True)) for x in (student, teacher))
    divergence = F.kl_div(F.log_softmax(s / 2, dim=1), F.softmax(t / 2, dim=1), reduction='none')
    return 4 * divergence.sum(1).mean()


def dkd_reference(student: Tensor, teacher: Tensor) -> Tensor:
    """Return DKD at temperature 4 from probabilities and masks, as its authors' program does."""
    labels = classes_of(student)[:, None]
    label = torch.zeros_like(student).scatter_(1, labels, 1).bool()
    others = torch.ones_like(student).scatter_(1, labels, 0).bool()
    both = [F.softmax(x / 4, dim=1) for x in (student, teacher)]
    s, t = (torch.cat([(p * mask).sum(1, keepdim=True) for mask in (label, others)], 1) for p in both)
    of_labels = F.kl_div(s.log(), t, reduction='batchmean')
    t = F.softmax(teacher / 4 - 1000 * label, dim=1)
    of_others = F.kl_div(F.log_softmax(student / 4 - 1000 * label, dim=1), t, reduction='batchmean')
    return 16 * of_labels + 8 * 16 * of_others


def nkd_reference(student: Tensor, teacher: Tensor) -> Tensor:
    """Return NKD, the label's logit taken out of the tensors, as its authors' program does."""
    labels = classes_of(student)[:, None]
    of_labels = -(F.softmax(teacher, dim=1).gather(1, labels) * F.log_softmax(student, dim=1).gather(1, labels)).mean()
    others = torch.ones_like(student).scatter_(1, labels, 0).bool()
    s, t = (x[others].reshape(len(x), -1) for x in (student, teacher))
    return of_labels - 1.5 * (F.softmax(t, dim=1) * F.log_softmax(s, dim=1)).sum(1).mean()


def dist_reference(student: Tensor, teacher: Tensor) -> Tensor:
    """Return DIST, the correlation of classes by transposing, as its authors' program does."""

    def correlation(x: Tensor, y: Tensor) -> Tensor:
        x, y = (z - z.mean(1).unsqueeze(1) for z in (x, y))
        return (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1) + 1e-8)

    s, t = (x.softmax(1) for x in (student, teacher))
    return 1 - correlation(s, t).mean() + 1 - correlation(s.T, t.T).mean()


def classes_of(logits: Tensor) -> Tensor:
    """Return a label for each row of logits (N, K)."""
    return torch.arange(len(logits), device=logits.device) % logits.shape[1]


def with_labels(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Loss:
    """Return a loss that takes labels as one of the logits alone."""
    return lambda student, teacher: loss(student, teacher, classes_of(student))


def nst_case(kernel: str, shape: tuple[int, ...]) -> Case:
    """Describe NST; its products are over the channels, for poly over the positions where those are fewer."""
    b, c, positions = shape[0], shape[1], shape[2] * shape[3]
    products = {
        'linear': 0,
        'gaussian': 10 * b * c * c * positions,
        'poly': min(10 * b * c * c * positions, 6 * b * c * positions**2),
    }[kernel]
    return Case(
        f'NST {kernel}',
        shape,
        partial(functional.nst_loss, kernel=kernel),
        nst_reference(kernel),
        literal=b * c * c * positions,
        products=products,
    )


def relational_case(name: str, shape: tuple[int, ...], loss: Loss, reference: Loss, literal: int = 0) -> Case:
    """Describe a loss over the samples of a batch: two Gram matrices, and a product back."""
    return Case(name, shape, loss, reference, literal=literal, products=6 * shape[0] * prod(shape))


def map_cases(shape: tuple[int, ...]) -> list[Case]:
    """List the losses of feature maps (B, C, H, W)."""
    literal = prod(shape) * shape[1]
    return [
        *(nst_case(kernel, shape) for kernel in ('linear', 'poly', 'gaussian')),
        relational_case('SP', shape, functional.sp_loss, sp_reference),
        Case('AT', shape, functional.at_loss, at_reference),
        Case('FSP', shape, functional.fsp_loss, fsp_reference, pairs=True, literal=literal, products=8 * literal),
        Case('VID', shape, vid, vid_reference),
        Case('CWD', shape, functional.cwd_loss, cwd_reference),
        Case('MGD', shape, functional.mgd_loss, lambda s, t: (s - t).pow(2).sum() / len(s)),
        Case('PKD', shape, functional.pkd_loss, pkd_reference),
        Case('ReviewKD', shape, functional.reviewkd_loss, reviewkd_reference),
        Case('FitNet', shape, functional.fitnet_loss, lambda s, t: 0.5 * (s - t).pow(2).mean()),
    ]


def vector_cases(shape: tuple[int, int]) -> list[Case]:
    """List the losses of embeddings (B, D)."""
    n, d = shape
    return [
        relational_case('RKD-D', shape, functional.rkd_distance_loss, rkd_distance_reference, n * n * d),
        relational_case('RKD-A', shape, functional.rkd_angle_loss, rkd_angle_reference, n**3 * d),
        relational_case("RKD-A, authors' form", shape, functional.rkd_angle_loss, rkd_angle_published, n**2 * d),
        relational_case('SP', shape, functional.sp_loss, sp_reference),
        relational_case('PKT', shape, functional.pkt_loss, pkt_reference),
    ]


def contrast_case(n: int) -> Case:
    """Describe CRD; two products with the bank, where its authors' form gathers each image's negatives."""
    return Case(
        'CRD',
        (n, 128),
        crd,
        crd_reference,
        literal=n * NEGATIVES * 128,
        products=4 * n * ENTRIES * 128,
        tolerance=0.2,  # the negatives that are drawn are a sample
    )


def loss_cases(full: bool) -> list[Case]:
    """List the losses to measure: a few of each, or those of CIFAR, ImageNet, an FPN and re-identification."""
    logits = [
        Case(name, (128, classes), loss, reference)
        for classes in (100, 1000)
        for name, loss, reference in (
            ('KD', functional.kd_loss, kd_reference),
            ('LSKD', partial(functional.kd_loss, tau=2.0, standardize=True), lskd_reference),
            ('DKD', with_labels(functional.dkd_loss), dkd_reference),
            ('NKD', with_labels(functional.nkd_loss), nkd_reference),
            ('DIST', functional.dist_loss, dist_reference),
        )
    ]
    if full:
        maps = [
            (128, 64, 8, 8),
            (128, 32, 16, 16),
            (128, 16, 32, 32),
            (64, 512, 7, 7),
            (64, 1024, 14, 14),
            (64, 2048, 7, 7),
            (2, 256, 100, 152),
            (2, 256, 50, 76),
            (2, 256, 25, 38),
            (2, 256, 13, 19),
            (64, 2048, 16, 8),
        ]
        vectors = [(64, 128), (128, 512), (64, 2048), (256, 2048)]
        return [
            *(case for shape in maps for case in map_cases(shape)),
            *(case for shape in vectors for case in vector_cases(shape)),
            *logits,
            *map(contrast_case, (64, 256)),
            Case('CrossKD, scores', (20_000, 80), soft_focal, soft_focal_reference),
        ]
    few = [
        nst_case(kernel, shape)
        for shape in ((64, 32, 16, 16), (32, 128, 8, 8), (64, 256, 4, 4))
        for kernel in ('linear', 'poly', 'gaussian')
    ]
    return [
        *few,
        *vector_cases((64, 128)),
        *(case for case in map_cases((128, 64, 8, 8)) if 'NST' not in case.name),
        *logits[:5],
        contrast_case(64),
        Case('CrossKD, scores', (2000, 80), soft_focal, soft_focal_reference),
    ]


def add_options(command: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    command.add_argument('--full', action='store_true', help='the shapes of CIFAR, ImageNet, an FPN and re-ID')
    command.add_argument('--dtypes', nargs='+', choices=['float32', 'bfloat16'], default=['float32'])
    command.add_argument(
        '--limit',
        type=float,
        default=1.0,
        metavar='GIB',
        help='leave out literal forms with a larger tensor (default: %(default)s)',
    )
    command.add_argument(
        '--only', nargs='+', metavar='LOSS', default=[], help="beginnings of losses' names, as NST RKD-A"
    )
    command.add_argument('--compile', action='store_true', help='also by torch.compile, which takes minutes')
    command.add_argument('--repeats', type=int, default=5)
    command.set_defaults(check=check_names, measure=losses)


def check_names(args: argparse.Namespace) -> None:
    """Refuse names of no loss."""
    names = [case.name for case in loss_cases(args.full)]
    for start in args.only:
        if not any(name.startswith(start) for name in names):
            raise UserError(f'--only: no loss is named {start}...; names are {", ".join(dict.fromkeys(names))}')


def inputs_of(case: Case, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any, list[Tensor]]:
    """Return student, teacher and the student's leaves: activations after a ReLU, the teacher's stronger."""
    generator = torch.Generator(device).manual_seed(0)

    def features(offset: float) -> Tensor:
        x = torch.randn(case.shape, generator=generator, device=device)
        return ((x + offset).relu() if len(case.shape) == 4 else 3 * x).to(dtype)

    student = [features(0.0).requires_grad_() for _ in range(1 + case.pairs)]
    teacher = [features(0.5) for _ in student]
    return (student, teacher, student) if case.pairs else (student[0], teacher[0], student)


def passes(loss: Loss, student: Any, teacher: Any, leaves: list[Tensor]) -> Callable[[], list[Tensor]]:
    """Return a function that computes a value and its gradients."""

    def step() -> list[Tensor]:
        value = loss(student, teacher)
        return [value.detach(), *torch.autograd.grad(value, leaves)]

    return step


def off_by(found: list[Tensor], expected: list[Tensor]) -> tuple[float, float]:
    """Return the relative differences of a value and of its gradients from others."""
    (value, *grads), (other, *others) = ([x.double() for x in parts] for parts in (found, expected))
    grad, other_grad = (torch.cat([x.flatten() for x in parts]) for parts in (grads, others))
    return ((value - other).abs() / other.abs()).item(), ((grad - other_grad).norm() / other_grad.norm()).item()


def measure(case: Case, args: argparse.Namespace, dtype: torch.dtype, machine: Machine) -> dict[str, Any]:
    """Compare a loss with float64, with its literal form where that fits in memory, and with its floor."""
    device = torch.device(args.device)
    student, teacher, leaves = inputs_of(case, device, dtype)
    steps = {'kd_plugins': passes(case.loss, student, teacher, leaves)}
    exact_leaves = [x.detach().double().requires_grad_() for x in leaves]
    exact = passes(
        case.loss,
        exact_leaves if case.pairs else exact_leaves[0],
        [x.double() for x in teacher] if case.pairs else teacher.double(),
        exact_leaves,
    )()
    result: dict[str, Any] = dict(name=case.name, shape=list(case.shape), dtype=str(dtype).removeprefix('torch.'))
    result['tolerance'] = case.tolerance
    own = steps['kd_plugins']()
    result['value_error'], result['gradient_error'] = off_by(own, exact)
    if case.literal * leaves[0].element_size() <= args.limit * 2**30:
        steps['reference'] = passes(case.reference, student, teacher, leaves)
        result['value_disagreement'], result['gradient_disagreement'] = off_by(own, steps['reference']())
    if args.compile:
        torch.compiler.reset()  # a loss is compiled eight times at the most
        steps['compiled'] = passes(torch.compile(case.loss), student, teacher, leaves)
        result['compiled_value_error'], result['compiled_gradient_error'] = off_by(steps['compiled'](), exact)
    times: dict[str, list[float]] = {name: [] for name in steps}
    # Many short calls are timed at once, so that reading the clock does not count; nor does the first call.
    for step in steps.values():
        step()
    calls = {name: max(1, int(LEAST[device.type] / seconds(step, device))) for name, step in steps.items()}
    for repeat in range(args.repeats):
        if repeat and sum(sum(times[name]) * calls[name] for name in steps) > 1e3 * PATIENCE:
            break
        for name, step in steps.items():

            def several(step: Callable[[], Any] = step, count: int = calls[name]) -> None:
                for _ in range(count):
                    step()

            times[name].append(1e3 * seconds(several, device) / calls[name])
    for name, step in steps.items():
        result[name] = dict(
            ms=median(times[name]),
            ms_min=min(times[name]),
            ms_max=max(times[name]),
            peak_bytes=peak_memory(step, device),
        )
    # Student and teacher are read once, a gradient is written.
    moved, computed = (3 * sum(x.nbytes for x in leaves) / machine.bandwidth, case.products / machine.operations)
    result |= dict(floor_ms=1e3 * max(moved, computed), bound_by='memory' if moved > computed else 'products')
    result['times_floor'] = result['kd_plugins']['ms'] / result['floor_ms']
    if 'reference' in result:
        mine, reference = result['kd_plugins'], result['reference']
        result |= dict(
            speedup=reference['ms'] / mine['ms'], memory_ratio=mine['peak_bytes'] / max(1, reference['peak_bytes'])
        )
    return result


def print_table(results: Sequence[dict[str, Any]], title: str) -> None:
    """Print a row for each case."""
    compiled = 'compiled' in results[0]

    def ranged(x: dict[str, Any]) -> str:
        return f'{x["ms"]:.2f} ({x["ms_min"]:.2f}–{x["ms_max"]:.2f})'

    table = Table(
        'loss',
        'shape',
        'dtype',
        'ms (min–max)',
        'literal ms (min–max)',
        'times faster',
        *(['compiled ms (min–max)', 'times faster', 'compiled off float64'] if compiled else []),
        'MiB',
        'literal MiB',
        'memory ratio',
        'times the floor',
        'floor by',
        'off float64, value and gradient',
        title=title,
    )
    for r in results:
        sides = [r['kd_plugins'], r.get('reference')]
        table.add_row(
            r['name'],
            '×'.join(map(str, r['shape'])),
            r['dtype'],
            *(ranged(x) if x else 'too large' for x in sides),
            f'{r["speedup"]:.1f}' if 'speedup' in r else '',
            *(
                [
                    ranged(r['compiled']),
                    f'{sides[0]["ms"] / r["compiled"]["ms"]:.2f}',
                    f'{r["compiled_value_error"]:.0e} {r["compiled_gradient_error"]:.0e}',
                ]
                if compiled
                else []
            ),
            *(f'{x["peak_bytes"] / 2**20:.2f}' if x else '' for x in sides),
            f'{r["memory_ratio"]:.4f}' if 'speedup' in r else '',
            f'{r["times_floor"]:.1f}',
            r['bound_by'],
            f'{r["value_error"]:.0e} {r["gradient_error"]:.0e}',
        )
    Console(width=max(200, Console().width)).print(table)


def losses(args: argparse.Namespace) -> None:
    """Measure the losses."""
    device = torch.device(args.device)
    machine = machine_of(device)
    about = dict(gigabytes_per_second=round(machine.bandwidth / 1e9, 1), gigaflops=round(machine.operations / 1e9, 1))
    chosen = [case for case in loss_cases(args.full) if not args.only or case.name.startswith(tuple(args.only))]
    cases = [(case, getattr(torch, dtype)) for case in chosen for dtype in args.dtypes]
    results: list[dict[str, Any]] = []
    try:
        for case, dtype in track(cases, 'measuring', console=Console(stderr=True), transient=True):
            results.append(measure(case, args, dtype, machine))
            keep(args, about | dict(cases=results))
    finally:  # an interruption loses no measurement
        if results:
            print_table(results, ', '.join(f'{k} {v}' for k, v in args.results['losses'].items() if k != 'cases'))

    def wrong(keys: tuple[str, str], tolerances: dict[str, float | None]) -> str:
        # Written so that NaN counts as a disagreement.
        return ', '.join(
            f'{r["name"]} {tuple(r["shape"])}'
            for r in results
            if keys[0] in r and not max(r[key] for key in keys) <= (tolerances[r['dtype']] or r['tolerance'])
        )

    checks: list[tuple[tuple[str, str], str, dict[str, float | None]]] = [
        (('value_error', 'gradient_error'), 'float64', {'float32': 1e-5, 'bfloat16': 1e-2}),
        (
            ('compiled_value_error', 'compiled_gradient_error'),
            'float64 (compiled)',
            {'float32': 1e-5, 'bfloat16': 1e-2},
        ),
        (
            ('value_disagreement', 'gradient_disagreement'),
            'the literal form',
            {'float32': None, 'bfloat16': float('inf')},  # None: the case's own; its own arithmetic is bfloat16's
        ),
    ]
    for keys, other, tolerances in checks:
        if found := wrong(keys, tolerances):
            raise UserError(f'{found} and {other} differ: see the table')
