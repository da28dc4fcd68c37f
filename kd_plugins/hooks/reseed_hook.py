"""Epochs that start from a state of their own."""

from mmengine.hooks import Hook
from mmengine.runner import Runner, set_random_seed

from kd_plugins.registry import HOOKS


@HOOKS.register_module()
class ReseedHook(Hook):
    """Seeds every epoch from the run's seed and the epoch's number.

    A run that was killed and resumed then draws the same augmentations as one that was not. Loader workers, which
    mmengine seeds alike in every epoch, get a seed that changes with it.
    """

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed Python, NumPy and torch in this process, and through torch the loader's workers."""
        set_random_seed((runner.seed + runner.epoch) % 2**32, diff_rank_seed=True)
        loader = runner.train_dataloader
        loader.worker_init_fn = None
        if loader.persistent_workers and runner.epoch == 0:
            runner.logger.warning('persistent_workers=True: augmentations after --resume will differ from those of an '
                                  'uninterrupted run')
