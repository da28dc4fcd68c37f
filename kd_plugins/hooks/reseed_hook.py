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
        # A large factor: seed + epoch + rank would repeat one process's draws in another one's next epoch.
        set_random_seed((runner.seed + 1_000_003 * runner.epoch) % 2**32, diff_rank_seed=True)
        loader = runner.train_dataloader
        loader.worker_init_fn = None
        loader._iterator = None  # persistent workers would go on from the states of the epoch before
