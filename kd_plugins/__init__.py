"""Knowledge distillation for OpenMMLab.

Importing the package is cheap: it only makes torchvision's operators available under mmcv's name where mmcv was
installed without compiled ones, keeps mmpretrain importable beside transformers 5, and offers its configs under
``kd_plugins::``. Everything registered is found by name, e.g. ``type='kd_plugins.NSTLoss'``.
"""

from kd_plugins.compat import provide_mmcv_ops, spare_transformers_5
from kd_plugins.compat.configs import provide_configs

__version__ = '0.2.0'

provide_mmcv_ops()
spare_transformers_5()
provide_configs()
