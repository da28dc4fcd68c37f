"""Child registries of mmengine's, in scope ``kd_plugins``.

mmengine imports ``<scope>.registry`` when it meets an unknown scope, and the locations below when it first looks a
name up, so ``type='kd_plugins.NSTLoss'`` is found in any config. On an mmcv without compiled operators the config also
needs ``custom_imports=dict(imports=['kd_plugins'])``: mmdet imports them before it looks at any name.
"""

from typing import Any

from mmengine import registry as mmengine_registry
from mmengine.registry import Registry


def _child(parent: Registry, *locations: str) -> Registry:
    return Registry(parent.name, parent=parent, scope='kd_plugins', locations=[f'kd_plugins.{x}' for x in locations])


MODELS = _child(mmengine_registry.MODELS, 'losses', 'models')
HOOKS = _child(mmengine_registry.HOOKS, 'hooks')
DATASETS = _child(mmengine_registry.DATASETS, 'datasets')
DATA_SAMPLERS = _child(mmengine_registry.DATA_SAMPLERS, 'datasets')
TRANSFORMS = _child(mmengine_registry.TRANSFORMS, 'datasets')
FUNCTIONS = _child(mmengine_registry.FUNCTIONS, 'datasets')
OPTIM_WRAPPERS = _child(mmengine_registry.OPTIM_WRAPPERS, 'optim')
METRICS = _child(mmengine_registry.METRICS, 'evaluation')


def type_name(record: dict[str, Any]) -> str:
    """Return the name of what a record builds, without its package; a config by ``read_base`` has the class itself."""
    kind = record.get('type', '')
    return kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', '')
