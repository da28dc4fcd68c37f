"""Adapters: modules that map a student's feature to the shape of the teacher's."""

from torch import Tensor, nn


def auto_adapter(student: Tensor, teacher: Tensor) -> nn.Module:
    """Return a linear map from the student's channels to the teacher's, for features like these.

    Args:
        student: Maps (B, C_S, H, W), or vectors (..., C_S).
        teacher: Maps (B, C_T, H, W), or vectors (..., C_T).

    Returns:
        A 1x1 convolution for maps, else a linear layer on the last axis.
    """
    if student.dim() == teacher.dim() == 4:
        return nn.Conv2d(student.shape[1], teacher.shape[1], kernel_size=1)
    return nn.Linear(student.shape[-1], teacher.shape[-1])
