"""Models inside wrappers."""

from mmengine.model import is_model_wrapper
from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside a data-parallel wrapper, or the model itself where there is none."""
    return model.get_submodule('module') if is_model_wrapper(model) else model
