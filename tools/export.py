"""Export a trained network to a file that runs without this package, and check that it computes the same.

    python tools/export.py configs/cifar10/resnet8.py work_dirs/cifar10/resnet8/student.pth --to student.onnx
    python tools/export.py configs/market1501/resnet18.py student.pth --to student.onnx --features features.npz

Classifiers are exported up to their logits, re-identification models up to the embedding that evaluation uses,
one-stage detectors up to the raw outputs of their heads or, with --decode, to boxes, scores and labels after NMS,
models without a head, and with --backbone others, up to the backbone's features. A config that distils exports its
student; its teacher need not be there.

The file ends in .onnx or .pt2 (torch.export). The batch may have any size, and a detector's images, too. The file is
run at batch 1 and 7 and compared with torch: it is left only where no output differs by more than 1e-4 of the output's
largest value. Its metadata say what it takes and returns. --score evaluates the file as test.py does the checkpoint.

Prints a table and, as the last line, its values as one JSON object.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

# Before torch is imported: idle threads that wait by spinning slow down what runs beside.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import kd_plugins  # noqa: F401 - supplies mmcv's operators
from kd_plugins.errors import UserError, one_line_errors
from kd_plugins.export.run import export
from kd_plugins.options import add_run_options


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a path, or package::path')
    parser.add_argument('checkpoint', help='the weights')
    parser.add_argument('--to', type=Path, required=True, metavar='FILE', help='file to write, .onnx or .pt2')
    parser.add_argument('--backbone', action='store_true', help='export the backbone alone')
    parser.add_argument(
        '--decode', action='store_true', help='export a detector with decoding and NMS: boxes, scores, labels'
    )
    parser.add_argument(
        '--normalize', action='store_true', help='normalise inside the file, which then takes pixels of 0 to 255'
    )
    parser.add_argument(
        '--size', type=int, nargs=2, metavar=('H', 'W'), help='size of the images (default: that of the test pipeline)'
    )
    parser.add_argument('--score', action='store_true', help="evaluate the file with the config's test set and metric")
    parser.add_argument(
        '--features',
        type=Path,
        metavar='FILE',
        help='the same of re-ID, and keep the features in a .npz for eval_reid.py',
    )
    add_run_options(parser, 'the log')
    args = parser.parse_args(argv)
    if args.size is not None and min(args.size) < 1:
        raise UserError(f'--size: expected a height and a width of at least 1, got {args.size[0]} and {args.size[1]}')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    export(parse_args(argv))


if __name__ == '__main__':
    with one_line_errors():
        main()
