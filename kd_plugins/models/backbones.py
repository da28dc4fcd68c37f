"""Backbones for 32 x 32 images, in three stages: taps ``backbone.stage1`` to ``backbone.stage3``."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from kd_plugins.errors import UserError
from kd_plugins.registry import MODELS

# The code of both papers' authors draws weights from N(0, 2 / (kernel area * output channels)).
HE_INIT = {'type': 'Kaiming', 'layer': 'Conv2d', 'mode': 'fan_out', 'nonlinearity': 'relu'}


def _conv(in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)


def _blocks_per_stage(name: str, depth: int, offset: int) -> int:
    blocks, rest = divmod(depth - offset, 6)
    if rest or blocks < 1:
        known = ', '.join(str(6 * n + offset) for n in (1, 2, 3, 4))
        raise UserError(f'{name}: depth must be 6n+{offset} with n >= 1 ({known}, ...), got {depth}')
    return blocks


class _BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, plus the input, then ReLU.

    Where the shape changes, the shortcut has no weights (option A) or is a 1 x 1 convolution with BatchNorm (option B).
    """

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, channels, stride=stride)
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv(channels, channels)
        self.norm2 = nn.BatchNorm2d(channels)
        self.sum = nn.Identity()  # a tap before the activation
        self.relu2 = nn.ReLU()
        self.padding = (0, 0, 0, 0, 0, channels - in_channels)
        self.shortcut = None
        if shortcut == 'B' and (stride != 1 or channels != in_channels):
            self.shortcut = nn.Sequential(_conv(in_channels, channels, 1, stride), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        stride = self.conv1.stride
        if self.shortcut is not None:
            shortcut = self.shortcut(x)
        elif stride == (1, 1) and not self.padding[-1]:
            shortcut = x
        else:  # pooling of single positions is a slice whose gradient keeps the memory layout
            shortcut = F.pad(F.avg_pool2d(x, 1, stride), self.padding)
        x = self.relu1(self.norm1(self.conv1(x)))
        return self.relu2(self.sum(self.norm2(self.conv2(x)) + shortcut))


class _PreActBlock(nn.Module):
    """BN-ReLU-conv twice, plus the input; a 1 x 1 convolution of the activated input where channels change."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = _conv(in_channels, channels, stride=stride)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv2 = _conv(channels, channels)
        self.shortcut = _conv(in_channels, channels, 1, stride) if in_channels != channels else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        return self.conv2(self.relu2(self.norm2(self.conv1(active)))) + shortcut


def stage(
    block: Callable[[int, int, int], nn.Module], blocks: int, in_channels: int, channels: int, stride: int
) -> nn.Sequential:
    """Return ``blocks`` blocks, each made by ``block(in_channels, channels, stride)``; the first alone strides."""
    return nn.Sequential(
        block(in_channels, channels, stride), *(block(channels, channels, 1) for _ in range(blocks - 1))
    )


@MODELS.register_module()
class CifarResNet(BaseModule):
    """The CIFAR residual network of He et al., section 4.2: a 3 x 3 stem and three stages of n basic blocks.

    The stages have ``width``, ``2 width`` and ``4 width`` channels at full, half and quarter resolution. Weights are
    initialised as in He et al. 2015.

    A tap on ``stem``, ``stage1``, ``stage2`` or ``stage3`` yields **post-ReLU** maps: the activation comes after the
    sum. The sums themselves are ``sum1``, ``sum2`` and ``sum3``, those of each stage's last block. No activation works
    in place, so a recorded map keeps its values.

    Args:
        depth: Number of layers with weights, 6n + 2: 8, 14, 20, 26, 32, 44, 56, 110.
        width: Number of channels of the first stage; 16 in the paper.
        init_cfg: mmengine's config dict for the initialisation.
        stem_channels: Number of channels of the stem; by default ``width``.
        shortcut: Shortcut where the shape changes, as the paper names them: ``'A'`` subsamples and appends zero
            channels, without weights; ``'B'`` is a strided 1 x 1 convolution with BatchNorm, as in RepDistiller, whose
            ``resnet8x4`` is ``CifarResNet(8, width=64, stem_channels=32, shortcut='B')``.

    Shape: input (B, 3, H, W); output a tuple of one (B, 4 width, H/4, W/4).

    Raises:
        UserError: The depth is not 6n + 2, or the shortcut is neither.

    References:
        1. He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2.
        2. He, Zhang, Ren, Sun: Delving Deep into Rectifiers, ICCV 2015, section 2.2.
        3. facebookarchive/fb.resnet.torch, ``models/resnet.lua`` (the shape ``basicblock`` with shortcut type A).
        4. HobbitLong/RepDistiller, ``models/resnet.py`` (shortcut B, the networks ``x4``).
    """

    def __init__(
        self,
        depth: int,
        width: int = 16,
        init_cfg: dict | list[dict] | None = HE_INIT,
        stem_channels: int | None = None,
        shortcut: str = 'A',
    ) -> None:
        super().__init__(init_cfg)
        n = _blocks_per_stage('CifarResNet', depth, offset=2)
        if shortcut not in ('A', 'B'):
            raise UserError(
                f"CifarResNet: shortcut must be 'A' (no weights) or 'B' (1 x 1 convolutions), got {shortcut!r}"
            )
        block = partial(_BasicBlock, shortcut=shortcut)
        stem = stem_channels or width
        self.num_features = 4 * width
        self.stem = nn.Sequential(_conv(3, stem), nn.BatchNorm2d(stem), nn.ReLU())
        stages = (
            stage(block, n, stem, width, 1),
            stage(block, n, width, 2 * width, 2),
            stage(block, n, 2 * width, 4 * width, 2),
        )
        self.sum1, self.sum2, self.sum3 = (x[-1].sum for x in stages)
        self.stage1, self.stage2, self.stage3 = stages

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Return the last stage's map, in a tuple as mmpretrain's necks and heads expect."""
        return (self.stage3(self.stage2(self.stage1(self.stem(x)))),)


@MODELS.register_module()
class WideResNet(BaseModule):
    """The wide residual network of Zagoruyko and Komodakis: pre-activation blocks, three stages, BN-ReLU at the end.

    The stem has 16 channels, the stages ``16 k``, ``32 k`` and ``64 k`` with k = ``widen_factor``, each of n blocks.
    No dropout. Weights are initialised as in He et al. 2015.

    A tap on ``stem``, ``stage1``, ``stage2`` or ``stage3`` yields the **raw residual sum**, signed, before the BN-ReLU
    that follows, as in the attention-transfer code of the same authors. Post-ReLU maps of the three stages are
    ``stage2.0.relu1``, ``stage3.0.relu1`` and ``relu``; the last one before its ReLU is ``norm``. No activation works
    in place, so a recorded map keeps its values.

    Args:
        depth: Number of layers with weights, 6n + 4: 10, 16, 22, 28, 40.
        widen_factor: Factor k on the channels of the stages.
        init_cfg: mmengine's config dict for the initialisation.

    Shape: input (B, 3, H, W); output a tuple of one (B, 64 k, H/4, W/4), post-ReLU.

    Raises:
        UserError: The depth is not 6n + 4.

    References:
        1. Zagoruyko, Komodakis: Wide Residual Networks, BMVC 2016, table 1.
        2. szagoruyko/wide-residual-networks, ``models/wide-resnet.lua``.
        3. szagoruyko/attention-transfer, ``cifar.py`` (the taps).
        4. HobbitLong/RepDistiller, ``models/wrn.py`` (the same network).
    """

    def __init__(self, depth: int, widen_factor: int, init_cfg: dict | list[dict] | None = HE_INIT) -> None:
        super().__init__(init_cfg)
        n = _blocks_per_stage('WideResNet', depth, offset=4)
        width = 16 * widen_factor
        self.num_features = 4 * width
        self.stem = _conv(3, 16)
        self.stage1 = stage(_PreActBlock, n, 16, width, 1)
        self.stage2 = stage(_PreActBlock, n, width, 2 * width, 2)
        self.stage3 = stage(_PreActBlock, n, 2 * width, 4 * width, 2)
        self.norm = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Return the last map after BN-ReLU, in a tuple as mmpretrain's necks and heads expect."""
        return (self.relu(self.norm(self.stage3(self.stage2(self.stage1(self.stem(x)))))),)
