"""Seeds that depend on the epoch."""

from mmengine.dataset import worker_init_fn
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner, set_random_seed

from kd_plugins.errors import UserError
from kd_plugins.registry import HOOKS


@HOOKS.register_module()
class ReseedHook(Hook):
    """Seeds every epoch from the run's seed and the epoch's index.

    A resumed run then draws the same augmentations as an uninterrupted one. One by iterations, which is a single epoch,
    is seeded from the iteration at which it starts: resumed, it sees the same images, and draws other augmentations.
    Workers of the data loader, which mmengine seeds equally in every epoch, get a seed that changes with the epoch,
    unless the config has a ``worker_init_fn`` of its own. The
    method ``set_epoch(epoch, seed)`` of a data set, where it has one, is called with both.

    Raises:
        UserError: Before training: such a data set is used in a run by iterations.
    """

    def before_run(self, runner: Runner) -> None:
        """Remember the seed that the samplers got: without one in the config a resumed run takes its own afterwards."""
        self._seed = runner.seed

    def before_train(self, runner: Runner) -> None:
        """Give the samplers the seed of the run that is resumed."""
        for sampler in (runner.train_dataloader.sampler, runner.train_dataloader.batch_sampler):
            if getattr(sampler, 'seed', None) == self._seed:
                sampler.seed = runner.seed

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed Python, NumPy and torch in this process, through torch the loader's workers, and the data set."""
        by_iterations = isinstance(runner.train_loop, IterBasedTrainLoop)
        step = runner.iter if by_iterations else runner.epoch
        # A large factor, since with seed + epoch + rank a process would repeat another one's draws an epoch later.
        set_random_seed((runner.seed + 1_000_003 * step) % 2**32, diff_rank_seed=True)
        loader = runner.train_dataloader
        if getattr(loader.worker_init_fn, 'func', None) is worker_init_fn:
            loader.worker_init_fn = None
        loader._iterator = None  # persistent workers would continue from the previous epoch's random states
        if hasattr(loader.dataset, 'set_epoch'):
            if by_iterations:
                raise UserError(
                    f'{type(loader.dataset).__name__} draws by epoch, but this run is by iterations, all '
                    'in one epoch: use train_cfg=dict(by_epoch=True, max_epochs=...)'
                )
            loader.dataset.set_epoch(runner.epoch, runner.seed)
