"""Draw pictures of what a model does, and list the taps that it offers.

    python tools/visualize.py taps configs/cifar10_quick/student_from_teacher.py
    python tools/visualize.py ranking features.npz --out pictures
    python tools/visualize.py curves work_dirs/cifar10_quick/student_from_teacher/* --out curves.png
    python tools/visualize.py tsne --tap backbone.stage3 --out tsne.png \\
        --teacher configs/cifar10_quick/teacher.py work_dirs/cifar10_quick/teacher/student.pth \\
        --student configs/cifar10_quick/student.py work_dirs/cifar10_quick/student/student.pth plain \\
        --student configs/cifar10_quick/student_from_teacher.py \\
        work_dirs/cifar10_quick/student_from_teacher/nst_poly/student.pth NST

ranking     the nearest gallery items of the queries with the best, the median and the worst average precision.
tsne        the channels of teacher and students, which NST makes alike: a point is a channel, described by its maps of
            the images at L2 norm 1. All networks are embedded together: the teacher's points are the same in every
            panel, and only the students' differ.
attention   where the activations of teacher and students are strong on some images, which AT makes alike.
similarity  the similarities that teacher and students see between the images of a batch, which SP preserves.

curves      the losses of up to eight runs, what part of the sum each is, and the metric, as mmengine has logged them.

taps        the modules of a config's student and teachers: the shapes that they return, their strides, the losses that
            fit, and pairs of taps to distil. It needs neither data nor weights.

tsne, attention and similarity take images from the test set of the first student's config, and show the output of the
module --tap; each network gets them in its own normalisation. The same call draws the same picture.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

# Before torch is imported: idle threads that wait by spinning slow down what runs beside.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

from visuals.attention import attention
from visuals.curves import curves
from visuals.networks import add_network_options
from visuals.ranking import ranking
from visuals.similarity import similarity
from visuals.taps import DEPTH, taps
from visuals.tsne import tsne

import kd_plugins  # noqa: F401 - supplies mmcv's operators
from kd_plugins.checkpoint import guard_checkpoints
from kd_plugins.errors import one_line_errors


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    command = commands.add_parser('ranking', help=ranking.__doc__, description=ranking.__doc__)
    command.add_argument('features', type=Path, help='file .npz or folder of .npy files, with the image paths')
    command.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder for the pictures')
    command.add_argument('--top', type=int, default=10, help='gallery items of a query (default: %(default)s)')
    command.add_argument('--queries', type=int, default=4, help='queries of a picture (default: %(default)s)')
    command.add_argument('--metric', choices=('cosine', 'euclidean'), default='cosine')
    command.set_defaults(run=ranking)
    for run, images in ((tsne, 64), (attention, 6), (similarity, 100)):
        command = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        add_network_options(command, images)
        command.set_defaults(run=run)
    commands.choices['similarity'].add_argument(
        '--classes',
        type=int,
        default=10,
        help='number of classes of the images, evenly spread over all (default: %(default)s)',
    )
    command = commands.add_parser('curves', help=curves.__doc__, description=curves.__doc__)
    command.add_argument('folders', type=Path, nargs='+', metavar='WORK_DIR', help='folder of a run')
    command.add_argument('--metric', metavar='NAME', help='metric to draw (default: the first that most runs have)')
    command.add_argument(
        '--out', type=Path, default='curves.png', metavar='FILE', help='.png .pdf or .svg (default: %(default)s)'
    )
    command.set_defaults(run=curves)
    command = commands.add_parser('taps', help=taps.__doc__, description=taps.__doc__)
    command.add_argument('config', help='a run that distils, or one network alone: a path, or package::path')
    command.add_argument(
        '--depth', type=int, metavar='N', help=f'names of at most N parts (default: {DEPTH}; with --filter all)'
    )
    command.add_argument('--filter', metavar='PATTERN', help="modules whose name holds this, or matches it, as '*.bn?'")
    command.add_argument(
        '--input',
        type=int,
        nargs=3,
        metavar=('C', 'H', 'W'),
        help='shape of the images (default: that of the training pipeline)',
    )
    command.add_argument('--json', type=Path, metavar='FILE', help='write all modules to a file, too')
    command.add_argument('--weights', action='store_true', help="load the teachers' weights, too")
    command.set_defaults(run=taps)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    guard_checkpoints(getattr(args, 'allow_pickle', False))
    args.run(args)


if __name__ == '__main__':
    with one_line_errors():
        main()
