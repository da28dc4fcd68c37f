"""Mixed precision without loss scaling."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from kd_plugins.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class BF16OptimWrapper(OptimWrapper):
    """Runs forward passes under bfloat16 autocast, on a CPU as well as on a GPU.

    bfloat16 has float32's range, so that gradients need no scaling. mmengine's ``AmpOptimWrapper`` (float16 with
    scaling) refuses to run on a CPU.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast the forward pass of a step; accumulation and synchronisation are mmengine's."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield
