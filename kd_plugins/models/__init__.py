"""Models found by name in scope ``kd_plugins``."""

from kd_plugins.models.backbones import CifarResNet, WideResNet
from kd_plugins.models.distiller import Distiller
from kd_plugins.models.mutual_learning import MutualLearning
from kd_plugins.models.native_ensemble import NativeEnsemble
from kd_plugins.models.reid import ReIDHead, ReIDModel

__all__ = ['CifarResNet', 'Distiller', 'MutualLearning', 'NativeEnsemble', 'ReIDHead', 'ReIDModel', 'WideResNet']
