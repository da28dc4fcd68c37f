"""Registered losses: ``loss(student, teacher) -> scalar``, without an outer weight, which the term holds."""

from .at import ATLoss
from .fitnet import FitNetLoss
from .fsp import FSPLoss
from .kd import KDLoss
from .nst import NSTLoss
from .rkd import RKDLoss
from .sp import SPLoss

__all__ = ['ATLoss', 'FSPLoss', 'FitNetLoss', 'KDLoss', 'NSTLoss', 'RKDLoss', 'SPLoss']
