"""Export of a finished run: the student's weights and the last metrics."""

import json
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process, master_only
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from mmengine.runner.checkpoint import weights_to_cpu

from kd_plugins.checkpoint import read_checkpoint, save_weights
from kd_plugins.errors import UserError
from kd_plugins.hooks.integrity_hook import DIGESTS
from kd_plugins.registry import HOOKS
from kd_plugins.utils.files import plain, write_text
from kd_plugins.utils.models import unwrapped
from kd_plugins.utils.random import preserved_rng
from kd_plugins.utils.scalars import BEGAN, score_in_log, time_of


@HOOKS.register_module()
class ExportHook(Hook):
    """At the end of training, writes ``student.pth`` and ``result.json`` into the run's folder.

    ``student.pth`` holds the last weights (the averaged ones under an ``EMAHook``) and no pickled code. ``result.json``
    holds the metrics of the last epoch, never of the best one on the test set. A new run, without
    ``--resume``, first renames both files of an older run in its folder to ``*.earlier``. A resumed run first validates
    where it was killed between a checkpoint and its validation, which would have no score; a run by iterations where
    its ``LoggerHook`` has ``log_metric_by_epoch=False``.

    A model of several networks has a method ``deployable(state_dict)``, which returns weights by name; each is written
    as ``<name>.pth``. Its ``student.pth`` has the plain student's keys, and is tested with the plain student's config
    (``tools/test.py configs/cifar10/resnet8.py work_dirs/cifar10/dml/resnet8/student.pth``).
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self._metrics: dict[str, Any] = {}
        self._writers: list[CheckpointHook] = []
        self._resumes = False

    def before_train(self, runner: Runner) -> None:
        """Find the hook that writes the checkpoint to export, and rename an older run's files."""
        self._writers = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook) and hook.save_last]
        if not self._writers:
            raise UserError(
                'ExportHook exports the last checkpoint, but no CheckpointHook writes one: add '
                "default_hooks.checkpoint=dict(type='CheckpointHook'), without save_last=False"
            )
        if '://' in str(self._writers[0].out_dir):
            raise UserError(
                f'ExportHook exports the last checkpoint, but {self._writers[0].out_dir}, where the '
                'CheckpointHook writes it, is not a local folder: change out_dir, or remove ExportHook'
            )
        self._resumes = runner._resume
        if not runner._resume:
            runner.message_hub.update_info(BEGAN, runner.timestamp)
        if not runner._resume and is_main_process():
            for name in ('result.json', 'student.pth'):
                if (file := Path(runner.work_dir, name)).is_file():
                    file.replace(f'{file}.earlier')
                    runner.logger.info(f'{file}, of an earlier run, is now {name}.earlier')

    def before_train_epoch(self, runner: Runner) -> None:
        """Validate where a resumed run lacks the score of the checkpoint that it goes on from."""
        if self._resumes and _lacks_score(runner):
            with preserved_rng():
                runner.val_loop.run()
        self._resumes = False

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Keep the metrics, with their epoch and iteration."""
        self._metrics = dict(metrics or {}) | {'epoch': runner.epoch, 'iter': runner.iter}

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Convert metrics to plain values: others would be refused as pickled code when the checkpoint is read."""
        info = checkpoint.get('message_hub', {}).get('runtime_info', {})
        info.update((key, plain(value)) for key, value in info.items() if key.startswith(('val/', 'test/')))

    def after_train(self, runner: Runner) -> None:
        """Write both files; validate first where a run was killed between its last checkpoint and its validation."""
        if runner.val_loop is not None and self._metrics.get('iter') != runner.iter:
            runner.val_loop.run()
        self._write(runner)

    @master_only
    def _write(self, runner: Runner) -> None:
        folder = Path(runner.work_dir)
        # A run that was resumed after its last iteration has written no checkpoint itself.
        path = self._writers[0].last_ckpt or (runner._load_from if runner._resume else None)
        checkpoint = read_checkpoint(path) if path else None
        if checkpoint is None or checkpoint['meta']['iter'] != runner.iter:  # stopped early, between two checkpoints
            meta = {'epoch': runner.epoch, 'iter': runner.iter}
            meta |= (
                {'dataset_meta': data.metainfo} if hasattr(data := runner.train_dataloader.dataset, 'metainfo') else {}
            )
            checkpoint = {'meta': meta, 'state_dict': weights_to_cpu(unwrapped(runner.model).state_dict())}
            runner.call_hook('before_save_checkpoint', checkpoint=checkpoint)  # an EMAHook puts its averages there
        known = ('epoch', 'iter', 'dataset_meta', DIGESTS)
        meta = {key: checkpoint['meta'][key] for key in known if key in checkpoint['meta']}
        model = unwrapped(runner.model)
        split = getattr(model, 'deployable', lambda weights: {'student': weights})
        for name, weights in split(checkpoint['state_dict']).items():
            save_weights(weights, folder / f'{name}.pth', meta)
        log = Path(runner.log_dir) / f'{runner.timestamp}.log'
        result = {
            'metrics': plain(_neighbours(runner) | self._metrics),
            'checkpoint': str(folder / 'student.pth'),
            'config': str(runner.cfg.filename or ''),
            'log': str(log),
        }
        write_text(folder / 'result.json', f'{json.dumps(result, indent=2)}\n')
        runner.logger.info(f'the student is in {folder / "student.pth"}')


def _lacks_score(runner: Runner) -> bool:
    """Return whether a validation was due when the checkpoint was written, and is in no log."""
    if runner.val_loop is None:
        return False
    now, loop = time_of(runner), runner.train_loop
    if isinstance(loop, IterBasedTrainLoop) and any(getattr(x, 'log_metric_by_epoch', False) for x in runner.hooks):
        return False  # the log does not tell its iteration
    if decide := getattr(loop, '_decide_current_val_interval', None):
        decide()  # as mmengine's loops do at each end
    due = now >= max(1, getattr(loop, 'val_begin', 1)) and now % getattr(loop, 'val_interval', now + 1) == 0
    lacks = [due and not score_in_log(runner)]
    broadcast_object_list(lacks)  # another machine may not see the log
    return lacks[0]


def _neighbours(runner: Runner) -> dict[str, Any]:
    """Return what a ``KNNHook`` found last in a run without validation."""
    scalars = runner.message_hub.log_scalars.items()
    found = {key.removeprefix('val/'): x.current() for key, x in scalars if key.startswith('val/knn/')}
    return found | {'epoch': runner.epoch, 'iter': runner.iter} if found else {}
