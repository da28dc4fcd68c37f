"""The error for an operator that only a compiled mmcv has."""

from kd_plugins.errors import UserError

# The build needs to see torch, hence no isolation; pip may have kept a wheel built without operators, hence no cache.
FULL_BUILD = (
    "pip install 'setuptools>=77,<82' ninja && MMCV_WITH_OPS=1 pip install --force-reinstall --no-deps "
    '--no-cache-dir --no-build-isolation --no-binary onedl-mmcv onedl-mmcv'
)


def missing(operator: str) -> UserError:
    """Return the error that names an operator and the build that has it."""
    return UserError(
        f'mmcv operator {operator}: expected a compiled mmcv, got the operators of kd_plugins, which lack it; '
        f'build the full mmcv with: {FULL_BUILD}'
    )
