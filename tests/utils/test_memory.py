"""Freed memory serves the next tensor."""

import platform
import subprocess
import sys

import pytest

CODE = """
import resource
import torch
from kd_plugins.utils.memory import keep_freed_memory
{call}
for i in range(30):  # the first ones leave gaps for the others
    if i == 25:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='another C library has other rules')
def test_pages_are_mapped_once():
    def faults(call: str) -> int:
        return int(subprocess.check_output([sys.executable, '-c', CODE.format(call=call)], text=True))

    assert faults('keep_freed_memory()') < 5 < faults('')
