"""Inner products of all rows with all rows, and threads for what is made of them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from kd_plugins.functional.gram import products_of

T = TypeVar('T')


def inner_products(a: Tensor, b: Tensor) -> Tensor:
    """Return the products (N, M) of float32 rows (N, D) and (M, D), with all bits of both."""
    with torch.autocast(a.device.type, enabled=False), products_of(torch.float32):
        return a @ b.T


def in_threads(calls: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yield the results of calls in their order, computed by as many threads as torch uses.

    A block of products small enough for a core's cache, and all that follows from it, is then faster in one thread than
    each step in several. The calls are made when their turn is near.
    """
    count, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()

    def run(call: Callable[[], T]) -> T:
        with torch.inference_mode(inference):  # a mode of the thread
            return call()

    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    running: deque[Future[T]] = deque()
    try:
        with products_of(torch.float32):  # a setting of the process, not of a thread
            for call in calls:
                running.append(pool.submit(run, call))
                if len(running) > 2 * count:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(count)  # of threads that begin later
