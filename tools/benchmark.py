"""Measure against plain reference forms, on this machine.

    python tools/benchmark.py losses --json losses.json
    python tools/benchmark.py reid
    python tools/benchmark.py loader
    python tools/benchmark.py loader configs/imagenet/resnet18_from_resnet34.py --threads 1
    python tools/benchmark.py step --amp --channels-last
    python tools/benchmark.py teacher
    python tools/benchmark.py race --threads 2
    python tools/benchmark.py backbones --threads 2
    python tools/benchmark.py losses step reid --device cuda --json all.json

Several may be named, with options that all of them have; the next runs even if one fails.

losses    most losses, forward and backward, compared with their literal forms (all pairs by broadcasting, as popular
          code does) and with a floor: the time to read student and teacher and to write the gradient, or to compute the
          products that it needs, at the speeds measured of this machine; with --compile also compiled. Value and
          gradient are compared with those of the literal form and of float64; the exit status is 1 where they disagree.
reid      retrieval on drawn features: the evaluation at the size of Market-1501, compared with the similarity product
          alone and with the usual way (a full argsort and a loop over the queries); re-ranking, on the CPU, compared
          with its dense form; and a memory-mapped gallery of a million items. The exit status is 1 where the mAPs
          disagree.
loader    CIFAR-sized batches, augmented and normalised: a whole batch at once from memory, compared with the stock
          pipeline. With a config, its training images in one process: the first step of the pipeline, which reads and
          decodes, all steps, and all steps on images that kd_plugins.ResizedImages holds.
step      training steps: of the student alone, with the teacher's forward pass, with each method's terms, and these
          with the teacher's features held in memory and read from disk; and the three operations on which a distilled
          step spends most time.
teacher   a teacher's forward pass by layout and precision, and with --compile compiled, and its features from disk.
race      whole trainings of the quick pair of CIFAR-10 on the CPU, one process each: by a plain loop with the literal
          loss, by torchdistill where it is installed, by DistillationHook on the same kind of data, and with batched
          images, the teacher's features from disk, bfloat16 and channels-last: images a second, memory, and the time to
          the accuracy that all reach. The last one also compiled, where --contestants names it.
backbones whole trainings of a backbone without labels on the CPU, on the data that configs/pretrain/README.md lists:
          by this package, with the teacher's features on disk and without, and by LightlyTrain where it is installed,
          by its defaults and at this package's learning rate: images a second, memory, and nearest neighbours.

Time is the median of interleaved repetitions: on a GPU by its own clock; on a CPU with --threads 1 the time that the
thread ran, on which other programs have less influence, and which leaves out waiting for a disk: files come from the
system's cache of them. A ratio of retrieval's is the median of the single ratios. The
floor is the time to read and write what a loss or a batch consists of, at the measured bandwidth, or to compute the
products that it needs, at the measured rate of large products; a step's has all its convolutions and products. Of
losses, batches and steps, memory is the peak that a call allocates: on CUDA by torch's own statistics; on a CPU the
highest sum of the allocations and frees of tensors that torch.profiler records, which is exact and independent of what
ran before; NumPy's arrays are not among them.
(The process's resident size is neither; but it includes the scratch space of the matrix library.) Of retrieval, memory
is the largest resident size of the process while it ran, in a process of its own, how much of it the run added, and
what was allocated on a GPU.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

# Before torch is imported: idle threads that wait by spinning slow down other processes.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import torch
from benchmarks.backbones import CONTESTANTS as BACKBONES
from benchmarks.backbones import backbone_run, backbones
from benchmarks.loader import loader
from benchmarks.losses import loss_cases, losses
from benchmarks.race import CONTESTANTS, METHODS, race, race_run
from benchmarks.reid import REID, REID_PARTS, reid, reid_run
from benchmarks.step import STEP_PARTS, configs_of, step
from benchmarks.teacher import teacher

from kd_plugins.errors import UserError, one_line_errors
from kd_plugins.options import check_device, check_least

COMMANDS = ('losses', 'reid', 'loader', 'step', 'teacher', 'race', 'backbones')


def parser_of() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # Named here, since some of them are only started by others.
    commands = parser.add_subparsers(dest='command', required=True, metavar=f'{{{",".join(COMMANDS)}}}')
    command = commands.add_parser('losses', help='losses compared with their literal forms')
    command.add_argument('--full', action='store_true', help='the shapes of CIFAR, ImageNet, an FPN and re-ID')
    command.add_argument('--dtypes', nargs='+', choices=['float32', 'bfloat16'], default=['float32'])
    command.add_argument(
        '--limit',
        type=float,
        default=1.0,
        metavar='GIB',
        help='leave out literal forms with a larger tensor (default: %(default)s)',
    )
    command.add_argument('--only', nargs='+', metavar='LOSS', help="beginnings of losses' names, as NST RKD-A")
    command.add_argument('--compile', action='store_true', help='also by torch.compile, which takes minutes')
    command.set_defaults(run_command=losses)
    command = commands.add_parser('reid', help='retrieval compared with the usual way')
    command.add_argument('--parts', nargs='+', choices=REID_PARTS, help='(default: all that is installed for)')
    command.add_argument('--scale', type=float, default=1.0, help='factor of the numbers of items and dimensions')
    command.add_argument('--processes', type=int, default=1, help='also evaluate by so many, which share the threads')
    command.add_argument('--folder', help="where the drawn features lie meanwhile, some 2 GiB (default: the system's)")
    command.set_defaults(run_command=reid)
    command = commands.add_parser(
        'loader', help="CIFAR-sized batches compared with the stock pipeline; or a config's data"
    )
    command.add_argument('config', nargs='?', help='measure the training data of this config')
    command.add_argument(
        '--images', type=int, default=50_000, help="images in the drawn set; of a config's, at most 300"
    )
    command.add_argument('--edge', type=int, default=160, help="shorter side of a config's resized images")
    command.set_defaults(run_command=loader)
    command = commands.add_parser('step', help='training steps with each method')
    command.add_argument('--parts', nargs='+', choices=STEP_PARTS, default=['cifar'], help='(default: cifar)')
    command.add_argument('--only', nargs='+', metavar='METHOD', help='names of methods, as kd')
    command.add_argument('--batch-size', type=int, default=128)
    command.add_argument('--amp', action='store_true', help='under bfloat16 autocast')
    command.add_argument('--channels-last', action='store_true')
    command.add_argument('--watch', action='store_true', help='also watched by WatchHook, and with its gradients')
    command.set_defaults(run_command=step)
    command = commands.add_parser('teacher', help="the ways to get a teacher's features")
    command.add_argument(
        '--parts', nargs='+', choices=['cifar', 'imagenet'], default=['cifar'], help='(default: cifar)'
    )
    command.add_argument('--batch-size', type=int, default=128)
    command.add_argument('--compile', action='store_true', help='also compiled, which takes minutes at first')
    command.set_defaults(run_command=teacher)
    command = commands.add_parser('race', help='whole trainings by a plain loop, torchdistill, and this package')
    command.add_argument(
        '--contestants', nargs='+', choices=CONTESTANTS, help='(default: all that are installed, but for compiled)'
    )
    add_race_options(command)
    command.set_defaults(run_command=race)
    command = commands.add_parser('backbones', help='a backbone without labels by this package and by LightlyTrain')
    command.add_argument('--contestants', nargs='+', choices=BACKBONES, help='(default: all that are installed)')
    add_backbone_options(command)
    command.set_defaults(run_command=backbones)
    for name, command in commands.choices.items():
        if name == 'reid':
            command.add_argument('--repeats', type=int, help='(default: 5 of market, 1 of the others, which take long)')
        elif name not in ('race', 'backbones'):
            command.add_argument('--repeats', type=int, default=5)
        command.add_argument('--json', metavar='FILE', help='also write the measurements here')
    command = commands.add_parser('reid-run')  # what reid starts
    command.add_argument('features')
    command.add_argument('names', nargs='+', choices=REID)
    command.add_argument('--resident', action='store_true')
    command.add_argument('--repeats', type=int, default=1)
    command.add_argument('--launcher', choices=['none', 'pytorch'], default='none')
    command.set_defaults(run_command=reid_run)
    command = commands.add_parser('race-run')  # what race starts
    command.add_argument('contestant', choices=CONTESTANTS)
    add_race_options(command)
    command.set_defaults(run_command=race_run)
    command = commands.add_parser('backbones-run')  # what backbones starts
    command.add_argument('contestant', choices=BACKBONES)
    add_backbone_options(command)
    command.set_defaults(run_command=backbone_run)
    for name, command in commands.choices.items():
        command.add_argument('--threads', type=int, default=torch.get_num_threads(), help='number of CPU threads')
        if name.startswith(('race', 'backbones')):
            command.set_defaults(device='cpu')
            continue
        command.add_argument(
            '--device',
            default='cuda' if torch.cuda.is_available() else 'cpu',
            help='(default: a GPU where there is one)',
        )
    return parser


def add_race_options(command: argparse.ArgumentParser) -> None:
    """Add what decides a training of the race."""
    command.add_argument('--method', choices=METHODS, default='kd')
    command.add_argument('--epochs', type=int, default=8)
    command.add_argument('--images', type=int, default=20_000, help='of the training set (default: %(default)s)')
    command.add_argument('--views', type=int, default=2, help='augmentations of an image, with the cache')
    command.add_argument('--data', default='data/cifar10', help='folder of CIFAR-10 (default: %(default)s)')
    command.add_argument(
        '--teacher', default='work_dirs/cifar10_quick/teacher/student.pth', help='its weights (default: %(default)s)'
    )
    command.add_argument('--seed', type=int, default=0)


def add_backbone_options(command: argparse.ArgumentParser) -> None:
    """Add what decides a training of a backbone."""
    command.add_argument('--method', default='cosine', help='of configs/_base_/methods_pretrain.py (default: cosine)')
    command.add_argument('--epochs', type=int, default=4)
    command.add_argument('--every', type=int, default=1, metavar='N', help='take each N-th image alone')
    command.add_argument('--seed', type=int, default=0)


def check_options(args: argparse.Namespace) -> None:
    """Refuse what needs no measurement to be seen wrong."""
    check_least(
        args, repeats=1, processes=1, threads=1, images=1, edge=1, views=1, every=1, epochs=1, batch_size=1, limit=0
    )
    check_device(args.device)
    folder, file = getattr(args, 'folder', None), getattr(args, 'json', None)
    if folder and not Path(folder).is_dir():
        raise UserError(f'--folder {folder}: there is no such folder')
    if file and (Path(file).is_dir() or not Path(file).parent.is_dir()):
        raise UserError(f'--json {file}: expected a file in a folder that is there')
    only = getattr(args, 'only', None) or []
    if args.command == 'losses':
        names = [case.name for case in loss_cases(args.full)]
        for start in only:
            if not any(name.startswith(start) for name in names):
                raise UserError(f'--only: no loss is named {start}...; names are {", ".join(dict.fromkeys(names))}')
    elif only:
        known = [name for part in args.parts for name in configs_of(part)]
        if unknown := set(only) - {*known}:
            raise UserError(
                f'--only: there is no method {", ".join(sorted(unknown))} in {", ".join(args.parts)}; methods are '
                f'{", ".join(known)}'
            )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    argv, parser = list(sys.argv[1:] if argv is None else argv), parser_of()
    names = list(takewhile(COMMANDS.__contains__, argv)) or argv[:1]
    runs = [parser.parse_args([name, *argv[len(names) :]]) for name in names] or [parser.parse_args(argv)]
    for args in runs:
        check_options(args)
    results: dict[str, dict[str, Any]] = {}
    failures = []
    for args in runs:
        args.results, args.several = results, len(runs) > 1
        torch.set_num_threads(args.threads)
        try:
            args.run_command(args)
        except UserError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise UserError('; '.join(map(str, failures)))


if __name__ == '__main__':
    with one_line_errors():
        main()
