"""BatchNorm computed by the convolution before it."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


class BatchNormFolding:
    """Lets the convolutions of a frozen network compute the BatchNorm that follows them.

    In ``eval()`` a BatchNorm scales and shifts each channel, which the weights and bias of the convolution before it
    can do as well: a pass over the map less. Parameters, buffers and names stay as they are; only the ``forward`` of
    both modules is another, until :meth:`undo`.

    :meth:`fold` takes the pairs that ran in :meth:`watching`: a plain convolution whose output is, every time, the
    input of one BatchNorm. That nothing else uses this output does not show in such a pass: compare the network's
    outputs before and after.

    Args:
        model: Network in ``eval()`` whose parameters do not change.
        taps: Names of submodules whose outputs stay what they are.
    """

    def __init__(self, model: nn.Module, taps: Iterable[str] = ()) -> None:
        self._model, self._taps = model, list(taps)
        self._pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Find the pairs in the forward passes inside the block."""
        runs: Counter[nn.Module] = Counter()
        pairs: Counter[tuple[nn.Conv2d, nn.BatchNorm2d]] = Counter()
        last: list[Any] = [None, None]

        def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            runs[module] += 1
            if isinstance(module, nn.BatchNorm2d) and isinstance(last[0], nn.Conv2d) and args and args[0] is last[1]:
                pairs[last[0], module] += 1
            last[:] = module, output

        tapped = [self._model.get_submodule(tap) for tap in self._taps]
        modules = [x for x in self._model.modules() if _folds(x) and not (isinstance(x, nn.Conv2d) and x in tapped)]
        handles = [module.register_forward_hook(record) for module in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._pairs = [pair for pair, count in pairs.items() if runs[pair[0]] == runs[pair[1]] == count]

    @torch.no_grad()
    def fold(self) -> int:
        """Fold all pairs, with the weights that they have now; return their number."""
        for convolution, norm in self._pairs:
            mean: Any = norm.running_mean  # not None, see _folds
            variance: Any = norm.running_var
            fused, bias = fuse_conv_bn_weights(
                convolution.weight, convolution.bias, mean, variance, norm.eps, norm.weight, norm.bias
            )
            weight = fused.detach().contiguous(memory_format=_layout(convolution.weight))
            vars(convolution)['forward'] = partial(convolution._conv_forward, weight=weight, bias=bias.detach())
            vars(norm)['forward'] = _as_it_is
        return len(self._pairs)

    def undo(self) -> None:
        """Let all modules compute what they did, until :meth:`fold`."""
        for pair in self._pairs:
            for module in pair:
                vars(module).pop('forward', None)

    def forget(self) -> None:
        """Let all modules compute what they did, for good."""
        self.undo()
        self._pairs = []


def _folds(module: nn.Module) -> bool:
    if type(module) is nn.BatchNorm2d:
        return module.running_mean is not None
    plain = type(module) is nn.Conv2d and 'weight' in module._parameters and 'forward' not in vars(module)
    return plain and not module._forward_hooks  # somebody looks at its output


def _layout(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def _as_it_is(x: Tensor) -> Tensor:
    return x
