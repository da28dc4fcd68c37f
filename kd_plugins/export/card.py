"""What a network costs, measured, as a table."""

import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torchvision  # noqa: F401 - torch.ops.torchvision
from mmengine.logging import print_log
from rich.table import Table
from torch import Tensor, nn
from torch.backends import mha
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def parameters_of(network: nn.Module) -> int:
    """Return the number of a network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def macs_of(network: Callable[[Tensor], object], image: Tensor) -> int:
    """Return the multiply-adds for an image (1, C, H, W): of convolutions, matrix products and attentions."""
    deformable = {torch.ops.torchvision.deform_conv2d: _deformable_flops}
    fused = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)  # neither it nor a CPU's fused attention would be counted
    try:
        counter = FlopCounterMode(display=False, custom_mapping=deformable)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            network(image)
    finally:
        mha.set_fastpath_enabled(fused)
    return counter.get_total_flops() // 2


def _deformable_flops(
    input_shape: Sequence[int], weight: Sequence[int], *args: object, out_shape: Sequence[int], **kwargs: object
) -> int:
    """Return twice the multiply-adds of a deformable convolution with weights (O, I / groups, h, w), as counted."""
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def latency_of(run: Callable[[Tensor], object], image: Tensor, seconds: float = 2.0) -> float:
    """Return the median time of a forward pass in milliseconds, of at least 5 and for about ``seconds``."""
    times: list[float] = []
    with torch.no_grad():
        run(image)
        end = time.perf_counter() + seconds
        while len(times) < 5 or (time.perf_counter() < end and len(times) < 200):
            start = time.perf_counter()
            run(image)
            times.append(1000 * (time.perf_counter() - start))
    if (median := statistics.median(times)) > 2 * min(times):
        print_log(
            f'a latency is {median:.2f} ms, the median, but {min(times):.2f} ms at best: other programs keep this CPU '
            'busy, measure again without them',
            'current',
            logging.WARNING,
        )
    return median


@dataclass
class Card:
    """The figures of one network.

    Attributes:
        name: ``'student'`` or ``'teacher'``.
        network: The network's class.
        size: Height and width of the image that it was measured with.
        parameters: Number of parameters of the exported part.
        macs: Its multiply-adds for an image.
        bytes: Size of the file.
        torch_ms: Latency of an image in torch.
        file_ms: Latency of an image by the file's runtime.
        metrics: Scores of the file.
    """

    name: str
    network: str
    size: tuple[int, int]
    parameters: int
    macs: int
    bytes: int | None = None
    torch_ms: float | None = None
    file_ms: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


def table_of(cards: Sequence[Card], runtime: str) -> Table:
    """Return the cards side by side."""
    table = Table('', *(card.name for card in cards))

    def row(name: str, values: Sequence[str]) -> None:
        table.add_row(name, *values)

    def number(value: float | None, form: str, scale: float = 1) -> str:
        return '–' if value is None else format(value / scale, form)

    row('network', [card.network for card in cards])
    row('image', [f'{height} × {width}' for height, width in (card.size for card in cards)])
    row('parameters (M)', [number(card.parameters, '.3f', 1e6) for card in cards])
    row('MACs (M)', [number(card.macs, ',.1f', 1e6) for card in cards])
    row('file (MB)', [number(card.bytes, '.2f', 1e6) for card in cards])
    row('torch (ms)', [number(card.torch_ms, '.2f') for card in cards])
    row(f'{runtime} (ms)', [number(card.file_ms, '.2f') for card in cards])
    for name in dict.fromkeys(name for card in cards for name in card.metrics):
        row(name, [number(card.metrics.get(name), '.4g') for card in cards])
    return table
