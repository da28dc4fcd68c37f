"""Configs of the command lines."""

from pathlib import Path
from typing import Any

from mmengine.config import Config

from kd_plugins.errors import UserError


def default_work_dir(path: str | Path) -> str:
    """Return ``work_dirs/<path below configs/, without .py>``; for a config elsewhere, its name."""
    parts = Path(path).with_suffix('').parts
    below = parts[len(parts) - parts[::-1].index('configs'):] if 'configs' in parts else parts[-1:]
    return str(Path('work_dirs', *below))


def load_config(path: str, work_dir: str | None = None, options: dict[str, Any] | None = None) -> Config:
    """Read a config and settle where its run lives.

    Raises:
        UserError: The file is missing or does not evaluate.
    """
    if not Path(path).is_file():
        raise UserError(f'config {path} does not exist: give the path of a .py file, as in configs/nst_voc.py')
    try:
        config = Config.fromfile(path)
        config.merge_from_dict(options or {})
    except Exception as error:
        raise UserError(f'{path} is no valid config: {type(error).__name__}: {error}') from error
    config.work_dir = work_dir or config.get('work_dir') or default_work_dir(path)
    return config
