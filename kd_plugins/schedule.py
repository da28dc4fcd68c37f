"""Weights that change during training."""

from bisect import bisect_right
from collections.abc import Sequence

from mmengine.logging import MessageHub

from kd_plugins.errors import UserError


class Schedule:
    """A piecewise-linear function of training time, constant before the first point and after the last.

    Two points at one time make a step: the later value holds from there on. ``Schedule(at=[0, 30, 30], value=[1, 1,
    0])`` is 1 for thirty epochs, then 0.

    Args:
        at: Times, in non-decreasing order.
        value: The value at each.
        by: Unit of ``at``: ``'epoch'`` (fractions count), ``'iter'``, or ``'progress'`` (0 at the start of training, 1
            at its end).

    Raises:
        UserError: The lists differ in length or are empty, times decrease, or the unit is unknown.
    """

    def __init__(self, at: Sequence[float], value: Sequence[float], by: str = 'epoch') -> None:
        if len(at) != len(value) or not at:
            raise UserError(f'a schedule needs as many values as times, got at={list(at)}, value={list(value)}')
        if list(at) != sorted(at):
            raise UserError(f'the times of a schedule must not decrease, got at={list(at)}')
        if by not in ('epoch', 'iter', 'progress'):
            raise UserError(f"a schedule runs by 'epoch', 'iter' or 'progress', got by='{by}'")
        self.at, self.value, self.by = list(at), list(value), by

    def __call__(self) -> float:
        """Return the value now, by the iteration that mmengine's message hub holds."""
        hub = MessageHub.get_current_instance()
        now = float(hub.get_info('iter', 0))
        if self.by != 'iter':
            now /= hub.get_info('max_iters', 1)
        if self.by == 'epoch':
            now *= hub.get_info('max_epochs', 1)
        return self.value_at(now)

    def value_at(self, time: float) -> float:
        """Return the value at a time given in the schedule's unit."""
        right = bisect_right(self.at, time)
        if right in (0, len(self.at)):
            return self.value[min(right, len(self.at) - 1)]
        left, span = right - 1, self.at[right] - self.at[right - 1]
        return self.value[left] + (self.value[right] - self.value[left]) * (time - self.at[left]) / span
