"""Adapters: modules that map a student's feature to the shape of the teacher's."""

from torch import Tensor, nn


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
