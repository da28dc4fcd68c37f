"""Stand-ins for what an installation may lack."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any


class _MMCVOpsFinder:
    """Answers ``mmcv._ext``, and nothing else, with the operators of ``mmcv_ext.py``."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != 'mmcv._ext':
            return None
        return spec_from_file_location(fullname, Path(__file__).with_name('mmcv_ext.py'))


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


def mend_ssd_head() -> None:
    """Let mmdet's SSD predict: since mmdet 3.2 a prediction reads ``loss_cls``, which its ``SSDHead`` lacks.

    Imports mmdet. Where the attribute exists, nothing changes.

    References:
        1. github.com/open-mmlab/mmdetection, number 11305.
    """
    from mmdet.models import SSDHead

    if not hasattr(SSDHead, 'loss_cls'):
        SSDHead.loss_cls = None
