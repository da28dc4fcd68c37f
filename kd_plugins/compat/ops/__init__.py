"""The operators that detectors need from ``mmcv._ext``, for an mmcv that was installed without compiled ones.

``import mmcv._ext`` executes this file, see :func:`kd_plugins.compat.provide_mmcv_ops`; hence absolute imports.

Names, argument names and results are those of mmcv's compiled module: most operators return nothing and write into
tensors that the caller has allocated; arguments that are only scratch space there are unused here. Everything runs on
the device of its tensors. Types below float32 are computed in float32 and rounded once at the end.

References:
    1. mmcv, ``mmcv/ops`` (interface and definitions).
    2. torchvision, ``torchvision.ops`` (which does the work).
"""

# ruff: noqa: F401

from collections.abc import Callable
from typing import NoReturn

import torchvision

from kd_plugins.compat.ops.deform_attn import ms_deform_attn_backward, ms_deform_attn_forward
from kd_plugins.compat.ops.deform_conv import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from kd_plugins.compat.ops.focal_loss import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from kd_plugins.compat.ops.masked_conv import masked_col2im_forward, masked_im2col_forward
from kd_plugins.compat.ops.missing import missing
from kd_plugins.compat.ops.nms import nms, nms_match, softnms
from kd_plugins.compat.ops.roi import roi_align_backward, roi_align_forward, roi_pool_backward, roi_pool_forward


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """Return, for any other operator, a function that raises: at import mmcv only asks whether the name exists."""
    if name.startswith('_'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def operator(*args: object, **kwargs: object) -> NoReturn:
        raise missing(name)

    return operator


def get_compiler_version() -> str:
    """Return, in place of mmcv's compiler, where the operators come from."""
    return f'none (operators of torchvision {torchvision.__version__})'


get_compiling_cuda_version = get_compiler_version
