"""ShuffleNet and MobileNetV2 for 32 x 32 images, as the distillation literature trains them on CIFAR-100.

mmpretrain's networks of these names are for images of 224 pixels. Here the maps are larger for the size of the image;
what else differs is in each docstring. No activation works in place, so a recorded map keeps its values.
"""

from functools import partial

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from kd_plugins.models.backbones import HE_INIT, stage
from kd_plugins.registry import MODELS


def _layer(
    in_channels: int, channels: int, kernel_size: int = 1, stride: int = 1, groups: int = 1, relu: bool = True
) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(channels), *([nn.ReLU()] if relu else [])]


class _Shuffle(nn.Module):
    """Order the channels anew: the first of each group, then the second of each, and so on."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


class _GroupedUnit(nn.Module):
    """1 x 1 in groups, shuffle, depthwise 3 x 3, 1 x 1 in groups; plus the input, which is appended where halved."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        made = channels - in_channels if stride == 2 else channels
        inner, groups = made // 4, 1 if in_channels == 24 else 3  # the stem's few channels form one group
        self.residual = nn.Sequential(
            *_layer(in_channels, inner, groups=groups),
            _Shuffle(groups),
            *_layer(inner, inner, 3, stride, groups=inner),
            *_layer(inner, made, groups=3, relu=False),
        )
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.sum = nn.Identity()  # a tap before the activation
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.residual(x)
        return self.relu(self.sum(residual + x if self.pool is None else torch.cat([residual, self.pool(x)], 1)))


@MODELS.register_module()
class CifarShuffleNetV1(BaseModule):
    """ShuffleNet, three groups, for 32 x 32 images: a 1 x 1 stem that keeps their size, three stages that halve it.

    The stages have 240, 480 and 960 channels and 4, 8 and 4 units. Unlike in the paper and in mmpretrain, the depthwise
    convolution has a ReLU, and a unit's inner width is a quarter of the channels that its convolutions make, not of all
    that it returns; mmpretrain also shuffles after the depthwise convolution. Weights start as torch initialises them.

    A tap on ``stem`` or a stage yields **post-ReLU** maps. Before the activation are ``stage1.3.sum``, ``stage2.7.sum``
    and ``stage3.3.sum``.

    Args:
        init_cfg: mmengine's config dict for the initialisation.

    Shape: input (B, 3, H, W); output a tuple of one (B, 960, H/8, W/8).

    References:
        1. Zhang, Zhou, Lin, Sun: ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices,
           CVPR 2018.
        2. HobbitLong/RepDistiller, ``models/ShuffleNetv1.py``.
    """

    def __init__(self, init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg)
        self.num_features = 960
        self.stem = nn.Sequential(*_layer(3, 24))
        self.stage1 = stage(_GroupedUnit, 4, 24, 240, 2)
        self.stage2 = stage(_GroupedUnit, 8, 240, 480, 2)
        self.stage3 = stage(_GroupedUnit, 4, 480, 960, 2)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Return the last stage's map, in a tuple as mmpretrain's necks and heads expect."""
        return (self.stage3(self.stage2(self.stage1(self.stem(x)))),)


class _SplitUnit(nn.Module):
    """Half of the channels pass, the others go through three convolutions; where halved, all go through both sides."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        half = channels // 2
        self.left = None
        if stride == 2:
            depthwise = _layer(in_channels, in_channels, 3, 2, groups=in_channels, relu=False)
            self.left = nn.Sequential(*depthwise, *_layer(in_channels, half))
        self.right = nn.Sequential(
            *_layer(half if self.left is None else in_channels, half),
            *_layer(half, half, 3, stride, groups=half, relu=False),
            *_layer(half, half),
        )
        self.shuffle = _Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1) if self.left is None else (self.left(x), x)
        return self.shuffle(torch.cat([left, self.right(right)], 1))


@MODELS.register_module()
class CifarShuffleNetV2(BaseModule):
    """ShuffleNetV2 for 32 x 32 images: a 1 x 1 stem that keeps their size, three stages that halve it, a 1 x 1 layer.

    The stages are those of mmpretrain's ``ShuffleNetV2``, 116, 232 and 464 channels, 4, 8 and 4 units; ``last`` has
    1024 channels. Weights start as torch initialises them. A tap on ``stem``, a stage or ``last`` yields **post-ReLU**
    maps.

    Args:
        init_cfg: mmengine's config dict for the initialisation.

    Shape: input (B, 3, H, W); output a tuple of one (B, 1024, H/8, W/8).

    References:
        1. Ma, Zhang, Zheng, Sun: ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design, ECCV 2018.
        2. HobbitLong/RepDistiller, ``models/ShuffleNetv2.py``.
    """

    def __init__(self, init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg)
        self.num_features = 1024
        self.stem = nn.Sequential(*_layer(3, 24))
        self.stage1 = stage(_SplitUnit, 4, 24, 116, 2)
        self.stage2 = stage(_SplitUnit, 8, 116, 232, 2)
        self.stage3 = stage(_SplitUnit, 4, 232, 464, 2)
        self.last = nn.Sequential(*_layer(464, 1024))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Return the map of ``last``, in a tuple as mmpretrain's necks and heads expect."""
        return (self.last(self.stage3(self.stage2(self.stage1(self.stem(x))))),)


class _InvertedResidual(nn.Module):
    """1 x 1 to ``expansion`` times the channels, depthwise 3 x 3, linear 1 x 1; plus the input where it fits."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = expansion * in_channels
        self.conv = nn.Sequential(
            *_layer(in_channels, inner),
            *_layer(inner, inner, 3, stride, groups=inner),
            *_layer(inner, channels, relu=False),
        )
        self.adds = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


@MODELS.register_module()
class CifarMobileNetV2(BaseModule):
    """MobileNetV2 for 32 x 32 images, which ``conv1``, ``layer3``, ``layer4`` and ``layer6`` halve, to 2 pixels.

    Modules have the names of mmpretrain's ``MobileNetV2``, from ``conv1`` by ``layer1`` to ``layer7`` to ``conv2``.
    Unlike there, ``layer2`` keeps the size, activations are ReLU, ``layer1`` has an expanding convolution too (to as
    many channels), and numbers of channels are not rounded to multiples of 8. Weights are initialised as in He et al.
    2015.

    A tap on a ``layer`` yields **signed** maps, of a linear bottleneck; one on ``conv1`` or ``conv2`` post-ReLU maps.

    Args:
        widen_factor: Factor on the channels of all layers but ``conv2``, which has 1280, more only where the factor is
            above 1. The students of the literature (``mobile_half``) have 0.5.
        init_cfg: mmengine's config dict for the initialisation.

    Shape: input (B, 3, H, W); output a tuple of one (B, 1280, H/16, W/16).

    References:
        1. Sandler, Howard, Zhu, Zhmoginov, Chen: MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018.
        2. HobbitLong/RepDistiller, ``models/mobilenetv2.py``.
    """

    def __init__(self, widen_factor: float = 1.0, init_cfg: dict | list[dict] | None = HE_INIT) -> None:
        super().__init__(init_cfg)
        self.num_features = int(1280 * max(1.0, widen_factor))
        widths = [int(width * widen_factor) for width in (32, 16, 24, 32, 64, 96, 160, 320)]
        self.conv1 = nn.Sequential(*_layer(3, widths[0], 3, stride=2))
        blocks, strides = (1, 2, 3, 4, 3, 3, 1), (1, 1, 2, 2, 1, 2, 1)
        for i in range(7):
            block = partial(_InvertedResidual, expansion=6 if i else 1)
            self.add_module(f'layer{i + 1}', stage(block, blocks[i], widths[i], widths[i + 1], strides[i]))
        self.conv2 = nn.Sequential(*_layer(widths[-1], self.num_features))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Return the map of ``conv2``, in a tuple as mmpretrain's necks and heads expect."""
        for layer in self.children():
            x = layer(x)
        return (x,)
