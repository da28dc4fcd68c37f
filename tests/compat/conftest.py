"""Supplies mmcv's operators before the tests of this folder import them."""

import kd_plugins  # noqa: F401
