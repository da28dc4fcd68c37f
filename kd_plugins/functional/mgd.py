"""Features that are generated from masked ones."""

from functools import partial

import torch
from torch import Tensor

from .checks import check_channels, check_choice, check_maps, check_number
from .gram import distillation_loss, half_squares, match_size

MASKS = ('positions', 'channels')


def check_mask(share: float, mask: str) -> None:
    """Check the options of :func:`draw_mask`."""
    check_number('share', share, 0)
    if share >= 1:
        raise ValueError(f'share: expected a share of at least 0 and below 1, got {share!r}')
    check_choice('mask', mask, MASKS)


def draw_mask(maps: Tensor, share: float, mask: str = 'positions') -> Tensor:
    """Draw which positions or channels of each image are masked, from torch's generator of the maps' device.

    Args:
        maps: Maps (B, C, H, W).
        share: Probability to be masked, at least 0 and below 1.
        mask: ``'positions'`` or ``'channels'``.

    Returns:
        0 where masked, else 1, of the type of the maps: (B, 1, H, W) for positions, (B, C, 1, 1) for channels.

    Raises:
        ValueError: An option is out of range.
    """
    check_mask(share, mask)
    kept = maps[:, :1] if mask == 'positions' else maps[:, :, :1, :1]
    return (torch.rand(kept.shape, device=maps.device) >= share).to(maps.dtype)


@partial(distillation_loss, takes_half=True)
def mgd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of maps that are generated from the student's masked ones, and the teacher's.

    ``||g - t||_2^2``, summed over the C H W elements of an image and averaged over the batch, as in the authors' code:
    it is C H W times a mean square, and grows with the size of the image. With their weight of 2e-5 for every level of
    an FPN, the 256 x 100 x 168 elements of the first level of an 800 x 1344 image weigh 86 times their mean square, the
    last level's 256 x 7 x 11 weigh 0.4 times.

    Args:
        student: Generated maps g (B, C, H, W).
        teacher: Maps t with the same B and C; they get no gradient. Where the maps differ in size, both are
            average-pooled to the smaller height and width.

    Returns:
        Scalar, in squared units of the features.

    Raises:
        ValueError: Not maps, or another batch or channel count.

    References:
        1. Yang et al.: Masked Generative Distillation, ECCV 2022, arXiv 2205.01529.
        2. yzd-v/MGD, ``det/mmdet/distillation/losses/mgd.py`` and ``cls/mmcls/distillation/losses/mgd.py``.
    """
    check_maps('mgd_loss', student, teacher)
    check_channels('mgd_loss', student, teacher)
    student, teacher = match_size(student, teacher)
    return half_squares(student, teacher) * (2 / len(student))
