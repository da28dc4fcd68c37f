"""Configs: reading them, and checking them before anything is built."""

from kd_plugins.config.checks import check_config
from kd_plugins.config.reading import (
    config_file,
    default_work_dir,
    load_config,
    located,
    task_weight_of,
    terms_of,
    trained,
    walk,
    without_workers,
)

__all__ = [
    'check_config',
    'config_file',
    'default_work_dir',
    'load_config',
    'located',
    'task_weight_of',
    'terms_of',
    'trained',
    'walk',
    'without_workers',
]
