"""A training that stops before its end."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from kd_plugins.registry import HOOKS


@HOOKS.register_module()
class StopHook(Hook):
    """Stops a training by epochs early, so that it can be resumed: all schedules remain those of the whole training.

    Args:
        epoch: Epoch after which it stops.
    """

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def before_train(self, runner: Runner) -> None:
        """Train no further where the run is resumed at that epoch, as after a kill before its validation."""
        runner.train_loop.stop_training = runner.epoch >= self.epoch

    def after_train_epoch(self, runner: Runner) -> None:
        """Stop after that epoch."""
        runner.train_loop.stop_training |= runner.epoch + 1 >= self.epoch
