"""Models found by name in scope ``kd_plugins``."""

from kd_plugins.models.backbones import CifarResNet, WideResNet
from kd_plugins.models.distiller import Distiller
from kd_plugins.models.mobile import CifarMobileNetV2, CifarShuffleNetV1, CifarShuffleNetV2
from kd_plugins.models.mutual_learning import MutualLearning
from kd_plugins.models.native_ensemble import NativeEnsemble
from kd_plugins.models.reid import ReIDHead, ReIDModel
from kd_plugins.models.vgg import CifarVGG

__all__ = [
    'CifarMobileNetV2',
    'CifarResNet',
    'CifarShuffleNetV1',
    'CifarShuffleNetV2',
    'CifarVGG',
    'Distiller',
    'MutualLearning',
    'NativeEnsemble',
    'ReIDHead',
    'ReIDModel',
    'WideResNet',
]
