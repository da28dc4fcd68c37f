"""``kd_plugins::cifar10/resnet8.py``: this package's configs by the name under which mmengine finds other packages'.

mmengine has a fixed table of packages, to which this one is added. It also needs a folder in the path, and builds what
is inherited by ``package::`` in that package's scope; here a config may be at the root, and states its own scope
(``default_scope``). Other packages' configs are found without reading their metafiles, a hundred for each name.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from kd_plugins.utils.packages import packaged_config


def provide_configs() -> None:
    """Let mmengine find this package's configs: now, or as soon as it is imported."""
    if 'mmengine.config' in sys.modules:
        _add_package(sys.modules['mmengine.config'])
    else:
        sys.meta_path.insert(0, _AfterImport)


class _AfterImport:
    """Finds ``mmengine.config`` as Python does, and adds this package to it once it is imported."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname == 'mmengine.config' else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_add(module: ModuleType) -> None:
                execute(module)
                sys.meta_path.remove(cls)
                _add_package(module)

            spec.loader.exec_module = execute_and_add  # type: ignore[method-assign]  # of this instance only
        return spec


def _add_package(config: ModuleType) -> None:
    # mmengine.hub reads this table. By the name that it has for mmseg, it installs the package of that name over the
    # fork of which this is a module.
    config.utils.MODULE2PACKAGE.update(kd_plugins='kd_plugins', mmseg='mmseg')
    find = config.Config._get_cfg_path

    def find_here(path: str, filename: str) -> tuple[str, str | None]:
        if not isinstance(path, str):
            raise TypeError(f'_base_ has {path!r}, expected the path of a config')
        file = packaged_config(path)
        if file is None:
            return find(path, filename)
        package = path.partition('::')[0]
        return str(file), None if package == 'kd_plugins' else package

    config.Config._get_cfg_path = staticmethod(find_here)
