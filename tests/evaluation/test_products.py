from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from threading import Event, Thread

import pytest
import torch

from kd_plugins.evaluation.products import in_threads


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def in_a_new_thread(call: Callable[[], int]) -> int:
    found: list[int] = []
    thread = Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


def test_results_come_in_the_order_of_the_calls_and_calls_overlap() -> None:
    later = Event()

    def first() -> str:
        assert later.wait(60)
        return 'first'

    def second() -> str:
        later.set()
        return 'second'

    assert [*in_threads([first, second])] == ['first', 'second']


def test_each_thread_has_one_of_torchs_and_later_ones_have_all() -> None:
    assert [*in_threads([torch.get_num_threads] * 9)] == [1] * 9
    assert torch.get_num_threads() == in_a_new_thread(torch.get_num_threads) == 2


def test_calls_are_made_when_their_turn_is_near() -> None:
    made: list[int] = []

    def calls() -> Iterator[Callable[[], int]]:
        for number in count():
            made.append(number)
            yield partial(int, number)

    results = in_threads(calls())
    assert [next(results) for _ in range(20)] == [*range(20)]
    assert len(made) <= 20 + 2 * 2
    results.close()


def test_an_error_ends_it() -> None:
    def calls() -> Iterator[Callable[[], float]]:
        for number in count(-3):
            yield partial(lambda x: 1 / x, number)

    results = in_threads(calls())
    assert [next(results) for _ in range(3)] == [-1 / 3, -1 / 2, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert torch.get_num_threads() == in_a_new_thread(torch.get_num_threads) == 2


def test_threads_share_the_precision_of_products(low_precision: None) -> None:
    """Else the first to end would lower it for the others."""
    inside = [*in_threads([lambda: torch.backends.mkldnn.matmul.fp32_precision] * 6)]
    assert inside == ['ieee'] * 6
    assert torch.backends.mkldnn.matmul.fp32_precision == 'bf16'
