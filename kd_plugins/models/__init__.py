"""Models found by name in scope ``kd_plugins``."""

from kd_plugins.models.backbones import CifarResNet, WideResNet
from kd_plugins.models.distiller import Distiller

__all__ = ['CifarResNet', 'Distiller', 'WideResNet']
