"""Models inside wrappers; the layout of their weights."""

import torch
from mmengine.model import is_model_wrapper
from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside a data-parallel wrapper, or the model itself where there is none."""
    return model.get_submodule('module') if is_model_wrapper(model) else model


def to_channels_last(model: nn.Module) -> None:
    """Convert the weights of 2-D convolutions to channels-last, and leave others alone.

    ``model.to(memory_format=torch.channels_last)`` fails where a weight has five dimensions, as those of 3-D or grouped
    convolutions may.
    """
    model._apply(lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x)
