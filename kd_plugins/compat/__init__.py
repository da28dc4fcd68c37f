"""Replacements for what an installation may lack."""

import inspect
import re
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from kd_plugins.errors import UserError

_OPS = Path(__file__).with_name('ops') / '__init__.py'


class _MMCVOpsFinder:
    """Finds ``mmcv._ext``, and nothing else, in ``ops/``."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != 'mmcv._ext':
            return None
        return spec_from_file_location(fullname, _OPS, submodule_search_locations=None)  # a module, no package


def provide_mmcv_ops() -> None:
    """Let ``import mmcv.ops`` find torchvision's operators where mmcv was installed without compiled ones.

    The finder is the last of ``sys.meta_path``, so that a compiled ``mmcv._ext`` always wins. A second call does
    nothing.
    """
    if _MMCVOpsFinder not in sys.meta_path:
        sys.meta_path.append(_MMCVOpsFinder)


class _DependencyFinder:
    """Finds ``mmpretrain.utils.dependency``, and nothing else, where it is, and mends what it says of transformers."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == 'mmpretrain.utils.dependency' else None
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            module.WITH_MULTIMODAL &= not module.satisfy_requirement('transformers>=5')  # type: ignore[attr-defined]

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def spare_transformers_5() -> None:
    """Let ``import mmpretrain`` pass over its multimodal models beside transformers 5, whose API they do not know.

    They would end the import of the whole package with a TypeError; without transformers mmpretrain leaves them out
    itself. To be called before mmpretrain is imported. A second call does nothing.
    """
    if _DependencyFinder not in sys.meta_path:
        sys.meta_path.insert(0, _DependencyFinder)


def provide_interp2d() -> None:
    """Restore SciPy's ``interp2d`` on grids, with which mmpretrain resizes the position tables of Swin and BEiT.

    SciPy 1.14 removed it, and recommends this replacement.
    """
    import scipy
    from scipy import interpolate

    def interp2d(x: Any, y: Any, z: Any, kind: str = 'linear') -> Any:
        order = dict(linear=1, cubic=3, quintic=5)[kind]
        spline = interpolate.RectBivariateSpline(x, y, z.T, kx=order, ky=order)
        return lambda x, y: spline(x, y).T

    if tuple(map(int, scipy.__version__.split('.')[:2])) >= (1, 14):
        interpolate.interp2d = interp2d


def check_operators(model: Any) -> None:
    """Check, before hours of training, that a model uses no operator of mmcv that only a compiled mmcv has.

    Args:
        model: A ``torch.nn.Module``.

    Raises:
        UserError: It does; the message names the module, the operator and how to build the full mmcv.
    """
    operators = sys.modules.get('mmcv._ext')
    if operators is None or getattr(operators, '__file__', None) != str(_OPS):
        return
    for name, module in model.named_modules():
        for kind in type(module).__mro__:
            if kind.__module__.startswith('mmcv.ops.'):
                used = re.findall(r'\bext_module\.(\w+)', inspect.getsource(sys.modules[kind.__module__]))
                used += ["roi_align with pool_mode='max'"] * (getattr(module, 'pool_mode', 'avg') == 'max')
                for operator in used:
                    if operator not in vars(operators):
                        raise UserError(f'{name} is a {kind.__name__}: {operators.missing(operator)}')


def mend_ssd_head() -> None:
    """Give mmdet's ``SSDHead`` the attribute ``loss_cls``, which it lacks and every prediction since mmdet 3.2 reads.

    Where mmdet is not imported or the attribute exists, nothing changes.

    References:
        1. github.com/open-mmlab/mmdetection, number 11305.
    """
    ssd = sys.modules.get('mmdet.models.dense_heads.ssd_head')
    if ssd is not None and not hasattr(ssd.SSDHead, 'loss_cls'):
        ssd.SSDHead.loss_cls = None
