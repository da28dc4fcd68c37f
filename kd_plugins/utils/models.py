"""Models as training holds them."""

from mmengine.model import is_model_wrapper
from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside a data-parallel wrapper; any other model itself."""
    return model.get_submodule('module') if is_model_wrapper(model) else model
