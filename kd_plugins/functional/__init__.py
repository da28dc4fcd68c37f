"""The mathematics of the losses: tensors in, scalar out; the first argument is the student, the second the teacher."""

from .at import at_loss
from .fitnet import fitnet_loss
from .fsp import fsp_loss
from .kd import kd_loss
from .nst import nst_loss
from .rkd import rkd_angle_loss, rkd_distance_loss, rkd_loss
from .sp import sp_loss

__all__ = [
    'at_loss',
    'fitnet_loss',
    'fsp_loss',
    'kd_loss',
    'nst_loss',
    'rkd_angle_loss',
    'rkd_distance_loss',
    'rkd_loss',
    'sp_loss',
]
