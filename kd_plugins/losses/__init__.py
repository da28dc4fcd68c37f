"""Registered losses: ``loss(student, teacher) -> scalar``, without an outer weight, which the term holds.

:mod:`kd_plugins.losses.base` states what a loss declares.
"""

from .at import ATLoss
from .base import AdversarialLoss, DistillationLoss
from .bss import BSSLoss
from .cosine import CosineLoss
from .crd import CRDLoss
from .crosskd import CrossKDLoss
from .cwd import CWDLoss
from .dist import DISTLoss
from .dkd import DKDLoss
from .fitnet import FitNetLoss
from .fsp import FSPLoss
from .kd import KDLoss
from .mgd import MGDLoss
from .nkd import NKDLoss
from .nst import NSTLoss
from .nst_gan import NSTGANLoss
from .pkd import PKDLoss
from .pkt import PKTLoss
from .reviewkd import ReviewKDLoss
from .rkd import RKDLoss
from .sp import SPLoss
from .vid import VIDLoss

__all__ = [
    'ATLoss',
    'AdversarialLoss',
    'BSSLoss',
    'CRDLoss',
    'CWDLoss',
    'CosineLoss',
    'CrossKDLoss',
    'DISTLoss',
    'DKDLoss',
    'DistillationLoss',
    'FSPLoss',
    'FitNetLoss',
    'KDLoss',
    'MGDLoss',
    'NKDLoss',
    'NSTGANLoss',
    'NSTLoss',
    'PKDLoss',
    'PKTLoss',
    'RKDLoss',
    'ReviewKDLoss',
    'SPLoss',
    'VIDLoss',
]
