"""What all measurements share: the time and the memory of a call, and the file of the results."""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile


class Machine(NamedTuple):
    """Measured speed of a device: bytes read or written, and operations of matrix products, a second."""

    bandwidth: float
    operations: float


def machine_of(device: torch.device, dtype: torch.dtype = torch.float32) -> Machine:
    """Measure a device by the best of some copies, of 256 MiB or, on a GPU, 1 GiB, and of some products in a precision.

    The products are of 2048 x 2048, on a GPU 8192 x 8192: smaller ones do not use all of it.
    """
    size, side = (2**26, 2048) if device.type == 'cpu' else (2**28, 8192)
    source, target = torch.ones(2, size, device=device)
    copying = min(seconds(lambda: target.copy_(source), device) for _ in range(8))
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    product = min(seconds(lambda: a @ b, device) for _ in range(8))
    return Machine(2 * source.nbytes / copying, 2 * side**3 / product)


def seconds(step: Callable[[], Any], device: torch.device) -> float:
    """Return how long one call takes: on a GPU by its own clock, on a CPU with one thread how long that thread ran."""
    if device.type == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    # The time of one thread does not include what other processes take of the processor.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    step()
    return clock() - began


def peak_memory(step: Callable[[], Any], device: torch.device) -> int:
    """Return the peak number of bytes that a call allocates beyond those allocated before."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'trace.json')
        profiled.export_chrome_trace(str(path))
        events = [e for e in json.loads(path.read_text())['traceEvents'] if e['name'] == '[memory]']
    return max(accumulate(e['args']['Bytes'] for e in sorted(events, key=lambda e: e['ts'])))


def keep(args: argparse.Namespace, results: dict[str, Any]) -> None:
    """Keep a command's results, with the machine's name; with ``--json``, write all results so far.

    The file holds one command's results, or, where several were named, those of each under its name.
    """
    device = torch.device(getattr(args, 'device', 'cpu'))
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else str(device)
    repeats = {'repeats': args.repeats} if getattr(args, 'repeats', None) else {}
    args.results[args.command] = (
        dict(device=name, torch=torch.__version__, threads=torch.get_num_threads()) | repeats | results
    )
    if args.json:
        found = args.results if args.several else args.results[args.command]
        Path(args.json).write_text(json.dumps(found, indent=2) + '\n')
