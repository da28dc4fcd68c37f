"""Communication between the processes of a data-parallel run."""

import torch
from mmengine.dist import all_gather, all_reduce, get_world_size
from torch import Tensor
from torch.distributed.nn.functional import all_gather as all_gather_with_gradient

from kd_plugins.errors import UserError


def gathered(feature: Tensor) -> Tensor:
    """Return the feature of the global batch, with gradient; the tensor itself in a single process.

    Args:
        feature: Feature (B, ...) of this process's images.

    Returns:
        (B * processes, ...), in the order of the ranks; without gradient where ``feature`` has none.

    Raises:
        UserError: The shapes differ between processes.
    """
    # A dry run, without gradient, is local to each process; its tensors may be on a device that the backend lacks.
    if get_world_size() == 1 or not torch.is_grad_enabled():
        return feature
    shapes = all_gather(torch.tensor(feature.shape, device=feature.device))
    if any(not torch.equal(shapes[0], other) for other in shapes):
        raise UserError(
            'a relational loss compares the samples of all processes, but the shapes of their features differ '
            f'({[tuple(s.tolist()) for s in shapes]}): tap a pooled feature, or train at a fixed size'
        )
    gather = all_gather_with_gradient if feature.requires_grad else all_gather
    return torch.cat(gather(feature.contiguous()))


def summed(x: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, without gradient; the tensor itself in a single process."""
    if get_world_size() == 1:
        return x
    x = x.detach().clone()
    all_reduce(x)
    return x
