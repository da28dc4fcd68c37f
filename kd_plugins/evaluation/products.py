"""Inner products of all rows with all rows."""

import torch
from torch import Tensor

from kd_plugins.functional.gram import products_of


def inner_products(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the products (N, M) of float32 rows (N, D) and (M, D), with all bits of both; in ``out`` if it is given.

    With ``out``, a loop touches no new memory, which takes a tenth of the time of a product.
    """
    with torch.autocast(a.device.type, enabled=False), products_of(torch.float32):
        return torch.mm(a, b.T, out=out)
