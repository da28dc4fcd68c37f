"""Child registries of mmengine's, in scope ``kd_plugins``.

mmengine imports ``<scope>.registry`` when it meets an unknown scope, and the locations below when it first looks a
name up. So ``type='kd_plugins.NSTLoss'`` works in any config, without ``custom_imports``.
"""

from mmengine import registry as mmengine_registry
from mmengine.registry import Registry


def _child(parent: Registry, *locations: str) -> Registry:
    return Registry(parent.name, parent=parent, scope='kd_plugins', locations=[f'kd_plugins.{x}' for x in locations])


MODELS = _child(mmengine_registry.MODELS, 'losses', 'models')
HOOKS = _child(mmengine_registry.HOOKS, 'hooks')
DATASETS = _child(mmengine_registry.DATASETS, 'datasets')
DATA_SAMPLERS = _child(mmengine_registry.DATA_SAMPLERS, 'datasets')
TRANSFORMS = _child(mmengine_registry.TRANSFORMS, 'datasets')
OPTIM_WRAPPERS = _child(mmengine_registry.OPTIM_WRAPPERS, 'optim')
METRICS = _child(mmengine_registry.METRICS, 'evaluation')
