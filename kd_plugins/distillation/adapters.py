"""Adapters: modules that map a student's features to the shape of the teacher's."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate


class MLPAdapter(nn.Sequential):
    """Two layers with LayerNorm and GELU in between, at every position: a linear map, LayerNorm, GELU, a linear map.

    The hidden width is that of the teacher.

    Args:
        student: Channels of the student.
        teacher: Channels of the teacher.

    References:
        1. Ranzinger et al.: AM-RADIO: Agglomerative Vision Foundation Model, CVPR 2024, arXiv 2312.06709.
        2. github.com/NVlabs/RADIO
    """

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__(nn.Linear(student, teacher), nn.LayerNorm(teacher), nn.GELU(), nn.Linear(teacher, teacher))

    def forward(self, feature: Tensor) -> Tensor:
        """Map (B, C_S, H, W) to (B, C_T, H, W), or (..., C_S) to (..., C_T)."""
        if feature.ndim == 4:
            return super().forward(feature.movedim(1, -1)).movedim(-1, 1)
        return super().forward(feature)


def adapter_for(kind: str, student: Tensor, teacher: Tensor) -> nn.Module:
    """Return a trainable module from the student's channels to the teacher's, for features like these.

    Args:
        kind: ``'auto'``, a linear map: a 1x1 convolution for maps, else a linear layer on the last axis; or ``'mlp'``,
            an :class:`MLPAdapter`.
        student: Maps (B, C_S, H, W), or vectors (..., C_S).
        teacher: Maps (B, C_T, H, W), or vectors (..., C_T).
    """
    maps = student.dim() == teacher.dim() == 4
    channels = (student.shape[1], teacher.shape[1]) if maps else (student.shape[-1], teacher.shape[-1])
    if kind == 'mlp':
        return MLPAdapter(*channels)
    return nn.Conv2d(*channels, kernel_size=1) if maps else nn.Linear(*channels)


class ABF(nn.Module):
    """Fusion of all levels of a student by attention, from the last to the first: "attention based fusion".

    Every level is reduced to the same number of channels, by a 1x1 convolution and BatchNorm. Each but the last is then
    added to what is fused so far, enlarged to its size by nearest neighbours: two maps of weights, by a 1x1 convolution
    of both and a sigmoid, weigh the two at every position. A 3x3 convolution and BatchNorm make the teacher's channels
    of each result. BatchNorm keeps no running statistics, since an adapter only trains; under data-parallel each
    process normalises by its own images, as the student does.

    The number of channels in between is that of the student's last level, at most 512, as in the authors' code for
    CIFAR-100. (For MobileNet on ImageNet, and for the FPNs of detectors, they have 256.)

    Args:
        student: Channels of the student's levels.
        teacher: Channels of the teacher's levels.

    References:
        1. Chen et al.: Distilling Knowledge via Knowledge Review, CVPR 2021, arXiv 2104.09044, section 3.3.
        2. dvlab-research/ReviewKD, ``CIFAR-100/model/reviewkd.py``.
    """

    def __init__(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        super().__init__()
        width = min(512, student[-1])
        self.reduce = nn.ModuleList(_convolution(channels, width, 1) for channels in student)
        self.attend = nn.ModuleList(nn.Conv2d(2 * width, 2, 1) for _ in student[1:])
        self.expand = nn.ModuleList(_convolution(width, channels, 3) for channels in teacher)

    def forward(self, levels: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Return a map (B, C_T, H, W) for each level.

        Args:
            levels: Maps (B, C_S, H, W) of the student, the first is the largest.
            sizes: Height and width of each result.

        Raises:
            ValueError: A batch of one image has a level of one pixel.
        """
        if len(levels[0]) == 1 and (1, 1) in [*(tuple(x.shape[2:]) for x in levels), *map(tuple, sizes)]:
            raise ValueError(
                "adapter='abf' normalises over batch and positions, which needs more than a pixel, but got a batch of "
                'one image with a level of one pixel: set drop_last=True in train_dataloader, or a larger batch_size'
            )
        outputs: list[Tensor] = []
        fused = None
        for index in reversed(range(len(levels))):
            level = self.reduce[index](levels[index])
            if fused is not None:
                above = interpolate(fused, level.shape[-2:])
                weights = self.attend[index](torch.cat([level, above], 1)).sigmoid()
                level = level * weights[:, :1] + above * weights[:, 1:]
            fused = level if level.shape[-2:] == sizes[index] else interpolate(level, sizes[index])
            outputs.insert(0, self.expand[index](fused))
        return outputs


def _convolution(channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels, track_running_stats=False))
