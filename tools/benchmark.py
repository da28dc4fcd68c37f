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
from collections.abc import Collection, Sequence
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any

# Before torch is imported: idle threads that wait by spinning slow down other processes.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import torch

from kd_plugins.errors import UserError, one_line_errors
from kd_plugins.options import check_device, check_least

# Each is described and measured by the module of its name, which is imported when it is asked for.
COMMANDS = {
    'losses': 'losses compared with their literal forms',
    'reid': 'retrieval compared with the usual way',
    'loader': "CIFAR-sized batches compared with the stock pipeline; or a config's data",
    'step': 'training steps with each method',
    'teacher': "the ways to get a teacher's features",
    'race': 'whole trainings by a plain loop, torchdistill, and this package',
    'backbones': 'a backbone without labels by this package and by LightlyTrain',
}
STARTED = ('reid-run', 'race-run', 'backbones-run')  # by the others


def parser_of(names: Collection[str]) -> argparse.ArgumentParser:
    """Describe the command line, with the options of the commands that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True, metavar=f'{{{",".join(COMMANDS)}}}')
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text)
    for name in STARTED:
        commands.add_parser(name)
    for name in {*names} & {*commands.choices}:
        command, (module, _, run) = commands.choices[name], name.partition('-')
        described = import_module(f'benchmarks.{module}')
        (described.add_run_options if run else described.add_options)(command)
        command.add_argument('--threads', type=int, default=torch.get_num_threads(), help='number of CPU threads')
        if not run:
            command.add_argument('--json', metavar='FILE', help='also write the measurements here')
        if module in ('race', 'backbones'):
            command.set_defaults(device='cpu')
            continue
        command.add_argument(
            '--device',
            default='cuda' if torch.cuda.is_available() else 'cpu',
            help='(default: a GPU where there is one)',
        )
    return parser


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
    if hasattr(args, 'check'):
        args.check(args)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    names = list(takewhile(COMMANDS.__contains__, argv)) or argv[:1]
    parser = parser_of(names)
    runs = [parser.parse_args([name, *argv[len(names) :]]) for name in names] or [parser.parse_args(argv)]
    for args in runs:
        check_options(args)
    results: dict[str, dict[str, Any]] = {}
    failures = []
    for args in runs:
        args.results, args.several = results, len(runs) > 1
        torch.set_num_threads(args.threads)
        try:
            args.measure(args)
        except UserError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise UserError('; '.join(map(str, failures)))


if __name__ == '__main__':
    with one_line_errors():
        main()
