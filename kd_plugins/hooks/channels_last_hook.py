"""Channels-last memory layout."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from kd_plugins.registry import HOOKS
from kd_plugins.utils.models import to_channels_last


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Converts the model to channels-last, the layout in which CPUs and tensor cores run convolutions fastest.

    The teacher of a ``DistillationHook`` uses the student's layout.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        """Convert the model."""
        to_channels_last(runner.model)
