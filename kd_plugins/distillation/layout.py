"""Tokens and maps: where the positions of the image are in a feature."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from torch import Tensor, nn

from kd_plugins.errors import UserError

Size = tuple[int, int]

# Parameters that vision transformers put before the tokens of the image, as timm, mmpretrain, transformers,
# torchvision, CLIP and DINO name them.
_PREFIXES = {
    'cls_token',
    'class_token',
    'class_embedding',
    'dist_token',
    'distillation_token',
    'reg_token',
    'register_tokens',
    'storage_tokens',
}


class Tokens(NamedTuple):
    """What a config states about the tokens (B, N, C) of a tap: ``prefix`` tokens, then a grid, row by row.

    Attributes:
        prefix: Number of class, distillation and register tokens before those of the image. None for what the network
            states.
        size: Height and width (H, W) of the grid. None for what follows from the size of the input.
        take: ``'cls'`` for the class token alone, a vector (B, C); None for all tokens.
    """

    prefix: int | None = None
    size: Size | None = None
    take: str | None = None

    def check(self, name: str) -> None:
        """Check the values of the option ``name``.

        Raises:
            UserError: A value is out of range.
        """

        def is_whole(x: object, least: int) -> bool:
            return isinstance(x, int) and not isinstance(x, bool) and x >= least

        if self.prefix is not None and not is_whole(self.prefix, 0):
            raise UserError(f'{name}: prefix must be a number of tokens, got {self.prefix!r}')
        is_pair = isinstance(self.size, Sequence) and len(self.size) == 2 and all(is_whole(x, 1) for x in self.size)
        if self.size is not None and not is_pair:
            raise UserError(f'{name}: size must be the (H, W) of the grid of tokens, as (16, 16), got {self.size!r}')
        if self.take not in (None, 'cls'):
            raise UserError(f"{name}: take must be 'cls' or None, got {self.take!r}")


@dataclass
class Layout:
    """How the feature at a tap, or one of its levels, is laid out.

    Attributes:
        side: ``'student'`` or ``'teacher'``.
        tap: Name of the module.
        tokens: What the config states.
        prefix: Number of tokens before those of the image, as the network states it; None where it does not.
        patch: Stride (height, width) of the network's first convolution: a vision transformer's patch.
        counts: Number of tokens that the tap has yielded first, by the size of the input.
    """

    side: str
    tap: str
    tokens: Tokens
    prefix: int | None
    patch: Size
    counts: dict[Size, int] = field(default_factory=dict)

    def taken(self, feature: Tensor, input_size: Size) -> Tensor:
        """Return what the config asks for: the class token (B, C), a map where it states one, else the whole feature.

        Args:
            feature: Feature at the tap.
            input_size: Height and width of the images that the network got.

        Raises:
            ValueError: The feature has no tokens, no class token, or another number of tokens.
        """
        if self.tokens == Tokens():
            return feature
        if feature.ndim != 3:
            raise ValueError(
                f"{self.side}_tokens are for taps that yield tokens (B, N, C), but '{self.tap}' yields "
                f'{tuple(feature.shape)}; remove them from the term'
            )
        if self.tokens.take is None:
            return self.as_map(feature, input_size)
        stated, count = self.tokens.prefix, feature.shape[1]
        if not (self._grid(count, input_size)[0] if stated is None else stated):
            raise ValueError(
                f"'{self.tap}' yields {count} tokens, as many as the grid has, so without a class token; if the first "
                f"is one, give {self.side}_tokens=dict(prefix=1, take='cls')"
            )
        return feature[:, 0]

    def as_map(self, feature: Tensor, input_size: Size) -> Tensor:
        """Return tokens (B, N, C) and channels-last maps (B, H, W, C) as maps (B, C, H, W), other features as they are.

        A feature of four axes counts as channels-last where its second and third axis are a size that some stride
        makes of the input, and its third and fourth are not.

        Args:
            feature: Feature at the tap.
            input_size: Height and width of the images that the network got.

        Raises:
            ValueError: The tokens fit no grid, or several, or are not as many as those of other images of this size.
        """
        if feature.ndim == 4:
            _, first, second, third = feature.shape
            channels_last = not _fits((second, third), input_size) and _fits((first, second), input_size)
            return feature.movedim(-1, 1) if channels_last else feature
        if feature.ndim != 3:
            return feature
        count, height, width = feature.shape[1], *input_size
        if (first := self.counts.setdefault((height, width), count)) != count:
            raise ValueError(
                f"'{self.tap}' yields {count} tokens for images of {height}x{width}, and has yielded {first}: some are "
                'left out, as by masking, so that they fill no map; tap where all are there, or a network without it'
            )
        prefix, size = self._grid(count, input_size)
        return feature[:, prefix:].mT.unflatten(2, size)

    def _grid(self, count: int, input_size: Size) -> tuple[int, Size]:
        """Return how many of ``count`` tokens are before those of the image, and the size of the grid of the others."""
        prefix, size, _ = self.tokens
        if size is not None:
            rest = count - size[0] * size[1]
            if rest < 0 or prefix not in (None, rest):
                stated = f'prefix={prefix}, ' if prefix is not None else ''
                raise ValueError(
                    f"{self.side}_tokens=dict({stated}size={tuple(size)}) are not the {count} tokens of '{self.tap}'; "
                    f'give a prefix and a size that make up {count}'
                )
            return rest, (size[0], size[1])
        # Without the stated ones, too: a tap may be before the class token is added, or after it is taken off.
        likely = {0, 1 if self.prefix is None else self.prefix}
        ordered = sorted(likely if prefix is None else {prefix}, reverse=True)
        found = [(x, size) for x in ordered for size in self._patches(count - x, input_size)]
        if self.prefix is not None:
            found = found[:1]
        found = found or [(x, size) for x in ordered for size in _grids(count - x, input_size)]
        if len(found) == 1:
            return found[0]
        height, width = (x // patch for x, patch in zip(input_size, self.patch, strict=True))
        if not 0 < height * width <= count:
            height = width = int(count**0.5)
        pixels = f'{input_size[0]}x{input_size[1]}'
        if found:
            (_, (height, width)), *_ = found
            sums = ' or '.join(f'{x} + {h}x{w}' for x, (h, w) in found)
            reason = f'are {sums} for an input of {pixels}'
        else:
            numbers = ' or '.join(map(str, ordered))
            reason = f'fit no grid for an input of {pixels}, with {numbers} before those of the image'
        raise ValueError(
            f"the {count} tokens of '{self.tap}' {reason}; give the real ones, as "
            f'{self.side}_tokens=dict(prefix={count - height * width}, size=({height}, {width}))'
        )

    def _patches(self, count: int, input_size: Size) -> set[Size]:
        """Return the grid of the network's patches, if ``count`` is their number; the last may be padded."""
        pairs = list(zip(input_size, self.patch, strict=True))
        floor, ceil = tuple(x // patch for x, patch in pairs), tuple(-(-x // patch) for x, patch in pairs)
        return {(height, width) for height, width in (floor, ceil) if height * width == count}


def _grids(count: int, input_size: Size) -> set[Size]:
    """Return all grids of ``count`` tokens that some stride makes of the input."""
    sizes = ((height, count // height) for height in range(1, min(count, input_size[0]) + 1) if count % height == 0)
    return {size for size in sizes if _fits(size, input_size)}


def _fits(size: Size, input_size: Size) -> bool:
    """Return whether some stride makes a map of this size of the input, both sides rounded down or both up."""
    pairs = list(zip(size, input_size, strict=True))
    if any(not 0 < x <= total for x, total in pairs):
        return False
    if max(total // (x + 1) for x, total in pairs) < min(total // x for x, total in pairs):
        return True
    most = min((total - 1) // (x - 1) if x > 1 else inf for x, total in pairs)
    return max(-(-total // x) for x, total in pairs) <= most


def size_of(x: Tensor) -> Size:
    """Return the height and width of images or maps (..., H, W)."""
    return x.shape[-2], x.shape[-1]


def layout_of(side: str, network: nn.Module, tap: str, tokens: Tokens) -> Layout:
    """Return the layout of a tap, as far as the network and the config state it.

    The nearest module around the tap that has a ``num_prefix_tokens`` (timm), a ``num_extra_tokens`` (mmpretrain) or
    parameters with the usual names of class, distillation and register tokens gives the number of prefix tokens.

    Args:
        side: ``'student'`` or ``'teacher'``.
        network: Network that the module is in.
        tap: Name of the module.
        tokens: What the config states.
    """
    path = tap.split('.')
    prefix = None
    for length in range(len(path), -1, -1):
        prefix = _stated_prefix(network.get_submodule('.'.join(path[:length])))
        if prefix is not None:
            break
    height, width = next((x.stride for x in network.modules() if isinstance(x, nn.Conv2d)), (1, 1))
    return Layout(side, tap, tokens, prefix, (height, width))


def _stated_prefix(module: nn.Module) -> int | None:
    for name in ('num_prefix_tokens', 'num_extra_tokens'):
        if isinstance(count := getattr(module, name, None), int):
            return count
    found = [p for name, p in module.named_parameters() if name.rpartition('.')[2] in _PREFIXES]
    return sum(1 if p.ndim == 1 else p.shape[-2] for p in found) if found else None
