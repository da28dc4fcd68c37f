"""Knowledge distillation for OpenMMLab.

Importing the package is cheap: it only makes torchvision's operators available under mmcv's name where mmcv was
installed without compiled ones. Everything registered is found by name, e.g. ``type='kd_plugins.NSTLoss'``.
"""

from kd_plugins.compat import provide_mmcv_ops

__version__ = '0.1.0'

provide_mmcv_ops()
