"""Models found by name in scope ``kd_plugins``."""

from kd_plugins.models.backbones import CifarResNet, WideResNet

__all__ = ['CifarResNet', 'WideResNet']
