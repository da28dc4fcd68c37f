"""Memory layout."""

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from kd_plugins.registry import HOOKS


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Stores the model's convolutions channels-last, the layout in which CPUs and tensor cores run them fastest.

    The teacher of a ``DistillationHook`` takes the student's layout over.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        """Convert the model."""
        runner.model.to(memory_format=torch.channels_last)
