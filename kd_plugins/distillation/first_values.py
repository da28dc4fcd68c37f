"""What the terms of a distillation weigh at the start of training."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import print_log

from kd_plugins.distillation.schedule import Schedule
from kd_plugins.distillation.term import Term
from kd_plugins.utils.losses import scalar_of

_APART = 1000


class FirstValues:
    """Logs the first value of each term, its weight and their product, beside the task's loss.

    A weight that changes in time counts with its largest value, so that one that rises from 0 is seen as what it
    becomes. A notice is logged where one that compares the images of a batch is 0, and where two of the others are more
    than a thousand times apart.

    Args:
        terms: The terms; one that is never active is left out.
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        self._names = {f'loss_{term.name}' for term in terms}
        self._left = [term for term in terms if term.is_ever_active()]
        self._first: dict[str, float] = {}

    @torch.no_grad()
    def __call__(self, losses: Mapping[str, Any]) -> None:
        """Log those terms that are computed for the first time in this step.

        Args:
            losses: All losses of the step, each term's weighted, under ``loss_<term>``.
        """
        now = {term: weight for term in self._left if (weight := term.current_weight())}
        if not now:
            return
        self._left = [term for term in self._left if term not in now]
        beside = ''
        if task := [
            scalar_of(loss).item() for name, loss in losses.items() if 'loss' in name and name not in self._names
        ]:
            self._first['the task'] = sum(task)
            beside = f", beside the task's {sum(task):.3g}"
        for term, present in now.items():
            value = scalar_of(losses[f'loss_{term.name}']).item() / present
            scheduled = isinstance(term.weight, Schedule)
            weight = max(term.weight.value) if isinstance(term.weight, Schedule) else term.weight
            largest = self._first[f"term '{term.name}'"] = value * weight
            print_log(
                f'distillation term {term.name}: first value {value:.3g} x weight {"up to " * scheduled}{weight:g} = '
                f'{largest:.3g}{beside}',
                'current',
            )
            if value == 0 and getattr(term.loss, 'batch_relational', False):
                print_log(
                    f"term '{term.name}' starts at 0, and trains nothing while it stays there: it compares the images "
                    'of a batch, and these are too few (SP and PKT need two, RKD three), or alike for both networks',
                    'current',
                    logging.WARNING,
                )
        known = {name: abs(value) for name, value in self._first.items() if value}
        if known and max(known.values()) > _APART * min(known.values()):
            least, most = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
            print_log(
                f'the losses of {least} and of {most} start more than a thousand times apart, at {known[least]:.3g} '
                f'and {known[most]:.3g}: if their weights are not meant so, change one; --watch shows what each does',
                'current',
                logging.WARNING,
            )
