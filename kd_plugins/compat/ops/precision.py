"""Computing in float32 and rounding once, whatever the type of the tensors."""

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor


def widen(*tensors: Tensor) -> list[Tensor]:
    """Convert tensors to their common type, at least float32."""
    dtype = reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    return [t.to(dtype) for t in tensors]


def gradients(function: Callable[..., Tensor], tensors: tuple[Tensor, ...], grad_output: Tensor) -> tuple[Tensor, ...]:
    """Return d(sum(grad_output · function(*tensors))) / d(each tensor)."""
    grad_output, *wide = widen(grad_output, *tensors)
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in wide]
        return torch.autograd.grad(function(*leaves), leaves, grad_output)
