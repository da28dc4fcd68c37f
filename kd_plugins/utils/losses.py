"""Losses as models return them."""

from functools import reduce
from typing import Any

import torch
from torch import Tensor


def scalar_of(loss: Any) -> Tensor:
    """Return a loss, a tensor or a list of tensors, as mmengine sums it: the mean of each, added."""
    return reduce(torch.add, (x.float().mean() for x in ([loss] if isinstance(loss, Tensor) else loss)))
