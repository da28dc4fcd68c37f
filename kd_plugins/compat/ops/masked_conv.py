"""Convolution at the positions of a mask alone."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Gather what a convolution reads for N of its outputs; 0 outside.

    Args:
        im: Maps (1, C, H, W).
        mask_h_idx: Rows (N,) of the outputs.
        mask_w_idx: Columns (N,) of the outputs.
        col: Written, (C · kernel_h · kernel_w, N).
        kernel_h: Kernel height.
        kernel_w: Kernel width.
        pad_h: Zeros added above and below.
        pad_w: Zeros added left and right.
    """
    padded = pad(im[0], (pad_w, kernel_w, pad_h, kernel_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, rows, columns].flatten(0, 2))


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Write N outputs ``col`` (C, N) to their positions in ``im`` (1, C, height, width)."""
    im[0, :, mask_h_idx, mask_w_idx] = col
