"""What all measurements share: the time and the memory of a call."""

import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile


class Machine(NamedTuple):
    """What a device was seen to do in a second: bytes read or written, operations of matrix products."""

    bandwidth: float
    operations: float


def machine_of(device: torch.device, dtype: torch.dtype = torch.float32) -> Machine:
    """Measure a device: the best of some copies of 256 MiB, and of some products of 2048 x 2048 in a precision."""
    source, target = torch.ones(2, 2 ** 26, device=device)
    a, b = torch.randn(2, 2048, 2048, device=device, dtype=dtype)
    copying = min(seconds(lambda: target.copy_(source), device) for _ in range(8))
    product = min(seconds(lambda: a @ b, device) for _ in range(8))
    return Machine(2 * source.nbytes / copying, 2 * 2048 ** 3 / product)


def seconds(step: Callable[[], Any], device: torch.device) -> float:
    """Return how long one call takes; on a CPU with one thread, how long that thread ran."""
    synchronise = partial(torch.cuda.synchronize, device) if device.type == 'cuda' else lambda: None
    # What other processes take of the processor then does not count.
    clock = time.thread_time if device.type == 'cpu' and torch.get_num_threads() == 1 else time.perf_counter
    synchronise()
    start = clock()
    step()
    synchronise()
    return clock() - start


def peak_memory(step: Callable[[], Any], device: torch.device) -> int:
    """Return the bytes that a call holds at its peak, beyond what was held before."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'trace.json')
        record.export_chrome_trace(str(path))
        events = [e for e in json.loads(path.read_text())['traceEvents'] if e['name'] == '[memory]']
    return max(accumulate(e['args']['Bytes'] for e in sorted(events, key=lambda e: e['ts'])))
