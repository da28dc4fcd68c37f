"""The console commands: ``kd-train`` is ``python tools/train.py``, and so on."""

import os
import sys
from pathlib import Path

TOOLS = Path(__file__).parent / '.mim' / 'tools'


def main() -> None:
    """Run the tool that this process was called by the name of, in its place."""
    name = Path(sys.argv[0]).stem.removeprefix('kd-').replace('-', '_')
    os.execv(sys.executable, [sys.executable, str(TOOLS / f'{name}.py'), *sys.argv[1:]])
