"""Weights that change during training."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from math import isfinite

from mmengine.logging import MessageHub

from kd_plugins.errors import UserError


def running() -> MessageHub | None:
    """Return the message hub of the run that trains, of several the one built last; None in a loop without a runner."""
    hubs = reversed(MessageHub._instance_dict.values())
    return next((hub for hub in hubs if hub.get_info('loop_stage', None)), None)


class Schedule:
    """A piecewise-linear function of training time, constant before the first point and after the last.

    Two points at one time make a step: the later value holds from there on. ``Schedule(at=[0, 30, 30], value=[1, 1,
    0])`` is 1 for thirty epochs, then 0.

    The epoch is that of mmengine's loop. A run that is resumed with another batch size or number of processes, and so
    another number of iterations per epoch, therefore continues at the epoch it had reached.

    Args:
        at: Times, in non-decreasing order.
        value: Value at each time.
        by: Unit of ``at``: ``'epoch'`` (fractions are allowed), ``'iter'``, or ``'progress'`` (0 at the start of
            training, 1 at its end).

    Raises:
        UserError: The lists differ in length, are empty or hold anything but finite numbers, the times decrease, or
            the unit is unknown; when called: the unit is the epoch, in a run by iterations, or the value changes and no
            runner counts the time.
    """

    def __init__(self, at: Sequence[float], value: Sequence[float], by: str = 'epoch') -> None:
        given = f'got at={at!r}, value={value!r}'
        for numbers in (at, value):
            if not isinstance(numbers, Sequence) or not all(
                isinstance(x, (int, float)) and isfinite(x) for x in numbers
            ):
                raise UserError(f'the times and values of a schedule are two lists of finite numbers, {given}')
        if len(at) != len(value) or not at:
            raise UserError(f'a schedule needs as many values as times, {given}')
        if list(at) != sorted(at):
            raise UserError(f'the times of a schedule must not decrease, got at={list(at)}')
        if by not in ('epoch', 'iter', 'progress'):
            raise UserError(f"a schedule runs by 'epoch', 'iter' or 'progress', got by='{by}'")
        self.at, self.value, self.by = list(at), list(value), by
        self._epoch, self._start = -1, 0  # epoch of the last call, and the first iteration of that epoch

    def __call__(self) -> float:
        """Return the value at the time in mmengine's message hub; it has to be called in every iteration."""
        if len({*self.value}) == 1:
            return self.value[0]
        hub = running()
        if hub is None:
            raise UserError(
                'a weight that changes over time follows a runner, and none trains: in a loop of your own give a '
                'number, and set the weight of the term in the loop (of a NativeEnsemble, ramp=0)'
            )
        iteration = hub.get_info('iter', 0)
        if self.by == 'iter':
            return self.value_at(iteration)
        epochs, iterations = hub.get_info('max_epochs', 1), hub.get_info('max_iters', 1)
        if epochs == 1:  # or a run that counts iterations
            if self.by == 'epoch' and _counts_iterations(hub):
                raise UserError(
                    "the weight of a term is scheduled by epoch, but this run is by iterations: give by='iter' or "
                    "by='progress'"
                )
            return self.value_at(iteration / iterations)
        if (epoch := hub.get_info('epoch', 0)) != self._epoch:
            self._epoch, self._start = epoch, iteration
        now = epoch + (iteration - self._start) * epochs / iterations
        return self.value_at(now if self.by == 'epoch' else now / epochs)

    def value_at(self, time: float) -> float:
        """Return the value at a time given in the schedule's unit."""
        right = bisect_right(self.at, time)
        if right in (0, len(self.at)):
            return self.value[min(right, len(self.at) - 1)]
        left, span = right - 1, self.at[right] - self.at[right - 1]
        return self.value[left] + (self.value[right] - self.value[left]) * (time - self.at[left]) / span


def _counts_iterations(hub: MessageHub) -> bool:
    """Return whether a run of a single epoch is a run by iterations; only its hook or its config knows that."""
    if hub.get_info('by_epoch', True) is False:
        return True
    loop = re.search(r'^train_cfg *= *dict\((.*?)\)$', hub.get_info('cfg', ''), re.MULTILINE | re.DOTALL)
    return loop is not None and any(text in loop[1] for text in ('by_epoch=False', 'IterBasedTrainLoop'))
