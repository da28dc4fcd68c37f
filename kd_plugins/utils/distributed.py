"""Communication between the processes of a data-parallel run."""

import torch
import torch.distributed as dist
from mmengine.dist import get_world_size
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from kd_plugins.errors import UserError


def gathered(feature: Tensor) -> Tensor:
    """Return the feature of the global batch, with gradient; the tensor itself in a single process."""
    # A dry run, without gradient, is local to each process; its tensors may be on a device that the backend lacks.
    if get_world_size() == 1 or not torch.is_grad_enabled():
        return feature
    shape = torch.tensor(feature.shape, device=feature.device)
    shapes = [torch.empty_like(shape) for _ in range(get_world_size())]
    dist.all_gather(shapes, shape)
    if any(not torch.equal(shape, other) for other in shapes):
        raise UserError(
            'a relational loss compares the samples of all processes, but the shapes of their features differ '
            f'({[tuple(s.tolist()) for s in shapes]}): tap a pooled feature, or train at a fixed size'
        )
    if not feature.requires_grad:
        parts = [torch.empty_like(feature) for _ in shapes]
        dist.all_gather(parts, feature.contiguous())
        return torch.cat(parts)
    return torch.cat(all_gather(feature.contiguous()))
