"""Stand-ins for what an installation may lack."""

import inspect
import re
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from kd_plugins.errors import UserError

_STAND_IN = Path(__file__).with_name('mmcv_ext.py')


class _MMCVOpsFinder:
    """Answers ``mmcv._ext``, and nothing else, with the operators of ``mmcv_ext.py``."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != 'mmcv._ext':
            return None
        return spec_from_file_location(fullname, _STAND_IN)


def provide_mmcv_ops() -> None:
    """Let ``import mmcv.ops`` find torchvision's operators where mmcv was installed without compiled ones.

    The finder stands last in ``sys.meta_path``, so a compiled ``mmcv._ext`` always wins. A second call does nothing.
    """
    if _MMCVOpsFinder not in sys.meta_path:
        sys.meta_path.append(_MMCVOpsFinder)


def provide_interp2d() -> None:
    """Give SciPy its ``interp2d`` back on grids, by which mmpretrain resizes the position tables of Swin and BEiT.

    SciPy 1.14 removed it, and names the same replacement.
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
    """Look, before hours of training, whether a model's modules use operators of mmcv that the stand-in lacks.

    Args:
        model: A ``torch.nn.Module``.

    Raises:
        UserError: One does; the message names the module, the operator and how to build the full mmcv.
    """
    operators = sys.modules.get('mmcv._ext')
    if getattr(operators, '__file__', None) != str(_STAND_IN):
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
    """Let mmdet's SSD predict: since mmdet 3.2 a prediction reads ``loss_cls``, which its ``SSDHead`` lacks.

    Where mmdet is not imported or the attribute exists, nothing changes.

    References:
        1. github.com/open-mmlab/mmdetection, number 11305.
    """
    ssd = sys.modules.get('mmdet.models.dense_heads.ssd_head')
    if ssd is not None and not hasattr(ssd.SSDHead, 'loss_cls'):
        ssd.SSDHead.loss_cls = None
