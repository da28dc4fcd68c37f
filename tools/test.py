"""Score a checkpoint.

python tools/test.py configs/nst_voc_mini.py work_dirs/nst_voc_mini/student.pth --show-dir work_dirs/pictures
"""

import argparse
import json
import logging
import os
from pathlib import Path

# Before torch is imported: idle threads that wait by spinning slow down what runs beside.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log

import kd_plugins  # noqa: F401 - supplies mmcv's operators
from kd_plugins.checkpoint import load_weights
from kd_plugins.classes import check_checkpoint_classes
from kd_plugins.engine import Tester, leave_group, load_run, scope_of
from kd_plugins.errors import one_line_errors
from kd_plugins.options import add_launcher, add_run_options
from kd_plugins.utils.files import plain
from kd_plugins.utils.models import unwrapped


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    add_run_options(parser, 'the log')
    add_launcher(parser)
    parser.add_argument(
        '--show-dir',
        help="draw the predictions into this folder; of a classifier's images of one file name the last is kept",
    )
    return parser.parse_args()


def set_drawing(config: Config, folder: str) -> None:
    """Let the visualisers of mmdet, mmseg or mmpretrain draw every prediction."""
    folder = str(Path(folder).resolve())  # mmdet puts a relative one below its time stamp
    if scope_of(config) == 'mmdet':
        visualizer, hook = (
            'mmdet.DetLocalVisualizer',
            dict(type='mmdet.DetVisualizationHook', draw=True, test_out_dir=folder),
        )
    elif scope_of(config) == 'mmseg':
        visualizer, hook = 'mmseg.SegLocalVisualizer', dict(type='mmseg.SegVisualizationHook', draw=True, interval=1)
    else:
        visualizer = 'mmpretrain.UniversalVisualizer'
        hook = dict(type='mmpretrain.VisualizationHook', enable=True, interval=1, out_dir=folder)
    # Where mmseg's pictures go; the others name the folder themselves.
    config.visualizer = dict(type=visualizer, vis_backends=[dict(type='LocalVisBackend', img_save_dir=folder)])
    config.default_hooks.visualization = hook


def main() -> None:
    """Run the command line."""
    args = parse_args()
    config = load_run(args.config, args, 'test')
    if args.show_dir:
        set_drawing(config, args.show_dir)
    runner = Tester.from_cfg(config)
    model = unwrapped(runner.model)
    # mmengine loads loosely, and would score random weights.
    checkpoint = load_weights(model, args.checkpoint, args.allow_pickle)
    check_checkpoint_classes(checkpoint, runner.test_dataloader.dataset)
    metrics = runner.test()
    print_log(f'scored {args.checkpoint}', 'current', logging.INFO)
    if is_main_process():
        print(json.dumps(plain(metrics)))
    del runner, model
    leave_group()


if __name__ == '__main__':
    with one_line_errors():
        main()
