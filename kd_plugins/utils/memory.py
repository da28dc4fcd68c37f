"""The memory of a process on a CPU."""

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next tensors of this process, and of those that it forks.

    glibc gives every large tensor new pages and returns them when it is freed, so that the kernel clears and maps the
    memory of all activations anew in every step. Nothing happens where the C library is another one.
    """
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
