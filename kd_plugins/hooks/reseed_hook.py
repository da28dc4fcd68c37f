"""Epochs that start from a state of their own."""

from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner, set_random_seed

from kd_plugins.errors import UserError
from kd_plugins.registry import HOOKS


@HOOKS.register_module()
class ReseedHook(Hook):
    """Seeds every epoch from the run's seed and the epoch's number.

    A run that was killed and resumed then draws the same augmentations as one that was not. Loader workers, which
    mmengine seeds alike in every epoch, get a seed that changes with it. A data set with a ``set_epoch(epoch, seed)``
    is told both.

    Raises:
        UserError: Before training, when such a data set meets a run without epochs.
    """

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed Python, NumPy and torch in this process, through torch the loader's workers, and the data set."""
        # A large factor: seed + epoch + rank would repeat one process's draws in another one's next epoch.
        set_random_seed((runner.seed + 1_000_003 * runner.epoch) % 2**32, diff_rank_seed=True)
        loader = runner.train_dataloader
        loader.worker_init_fn = None
        loader._iterator = None  # persistent workers would go on from the states of the epoch before
        if hasattr(loader.dataset, 'set_epoch'):
            if isinstance(runner.train_loop, IterBasedTrainLoop):
                raise UserError(
                    f'{type(loader.dataset).__name__} draws by epoch, but this run counts iterations, all '
                    'in one epoch: use train_cfg=dict(by_epoch=True, max_epochs=...)'
                )
            loader.dataset.set_epoch(runner.epoch, runner.seed)
