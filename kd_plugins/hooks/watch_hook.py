"""What each term of a distillation contributes to training, in the log and in every visual back-end."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from kd_plugins.distillation.distillation import Distillation
from kd_plugins.errors import UserError
from kd_plugins.hooks.distillation_hook import distillation_of
from kd_plugins.registry import HOOKS
from kd_plugins.utils.losses import scalar_of
from kd_plugins.utils.models import unwrapped

_TASK = 'task'


@HOOKS.register_module()
class WatchHook(Hook):
    r"""Logs what each term of a distillation contributes, beside mmengine's ``loss_<term>``, the weighted loss.

    ====================== ============================================================================================
    ``raw_loss/<term>``    The loss before its weight; absent while the weight is 0, where it is not computed.
    ``weight/<term>``      The weight.
    ``loss_share/<term>``  :math:`L_i / \sum_j |L_j|` of the weighted losses that train; that of the task's is ``task``.
    ``gradient/<term>``    L2 norm of the gradient of the weighted loss with respect to the student's parameters.
    ``teacher_time``       Seconds that the teachers took, or their cache. On a GPU, by its clock.
    ====================== ============================================================================================

    The log shows losses, shares and the time as mmengine shows losses, the mean of the last iterations, and weights and
    gradients as they were last.

    It watches a :class:`DistillationHook` and a :class:`~kd_plugins.models.Distiller` alike. Under data-parallel,
    losses and shares are those of the first process, as mmengine's are, but a gradient is averaged over the processes
    before its norm is taken: it is that of the global batch. It is of one iteration: neither summed nor divided where
    ``accumulative_counts`` accumulates several, not clipped, and not scaled by a ``GradScaler``.

    Args:
        gradients: Number of iterations from one measurement of the gradients to the next; a multiple of the logger's
            interval is measured where it is logged. Each costs a backward pass for each term and one for the task. 0
            measures none, and costs nothing.

    Raises:
        UserError: The number is invalid, a term has the name ``task``, or the gradient of a single term cannot be
            computed (reentrant activation checkpointing, a compiled model).
    """

    def __init__(self, gradients: int = 0) -> None:
        if not isinstance(gradients, int) or isinstance(gradients, bool) or gradients < 0:
            raise UserError(f"WatchHook: gradients must be a number of iterations, or 0 for 'never', got {gradients!r}")
        self.gradients = gradients
        self._distillation: Distillation | None = None
        self._scaler: Any = None
        self._device = torch.device('cpu')
        self._due = False
        self._losses: dict[str, Tensor] = {}
        self._norms: dict[str, Tensor] = {}
        self._teacher_time: Callable[[], float] = float

    def before_train(self, runner: Runner) -> None:
        """Begin to watch."""
        self._distillation = distillation_of(runner)
        if self._distillation is None:
            runner.logger.warning('WatchHook: this run has no teacher, so there are no terms to watch')
            return
        if any(term.name == _TASK for term in self._distillation.terms):
            raise UserError(f"WatchHook: a term is named '{_TASK}', as are the task's own losses here: rename the term")
        if self.gradients and runner.cfg.get('compile'):
            raise UserError(
                'WatchHook: a compiled model has no gradient of a single term: remove compile, or gradients'
            )
        self._scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        self._device = next(unwrapped(runner.model).parameters()).device
        self._distillation.observer = self

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Decide whether to measure gradients."""
        self._due = self.every_n_train_iters(runner, self.gradients)

    @contextmanager
    def during_teachers(self) -> Iterator[None]:
        """Measure how long the teachers run."""
        if self._device.type == 'cuda':
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._teacher_time = lambda: start.elapsed_time(end) / 1e3
        else:
            began = time.perf_counter()
            yield
            taken = time.perf_counter() - began
            self._teacher_time = lambda: taken

    def before_backward(self, losses: Mapping[str, Any]) -> None:
        """Keep the losses, and measure their gradients where it is time to."""
        rest = {name: scalar_of(loss) for name, loss in losses.items() if 'loss' in name}
        distillation: Distillation = self._distillation  # type: ignore[assignment]  # set by before_train
        parts = {term.name: rest.pop(f'loss_{term.name}') for term in distillation.terms}
        if distillation.task == 'train' and rest:  # in every process, also where none of them has a gradient
            training = [loss for loss in rest.values() if loss.requires_grad]
            parts[_TASK] = torch.stack(training).sum() if training else next(iter(rest.values())).new_zeros(())
        self._losses = {name: loss.detach() for name, loss in parts.items()}
        if self._due:
            self._norms = {name: self._norm(name, loss) for name, loss in parts.items()}

    def _norm(self, name: str, loss: Tensor) -> Tensor:
        """Return the norm of the gradient of a loss, averaged over the processes; some may have no graph of it."""
        student = self._distillation.recorder.model  # type: ignore[union-attr]  # set by before_train
        parameters = [p for p in student.parameters() if p.requires_grad]
        scale = self._scaler.get_scale() if self._scaler else 1.0  # in float16 small gradients would be 0
        found: Sequence[Tensor | None] = [None] * len(parameters)
        try:
            if loss.requires_grad:
                with torch.autocast(self._device.type, enabled=False):
                    found = torch.autograd.grad(loss * scale, parameters, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            raise UserError(
                f'WatchHook: the gradient of {name} alone cannot be computed ({" ".join(str(error).split())[:200]}): '
                'turn activation checkpointing off (with_cp), or remove gradients'
            ) from error
        # The same elements in every process, also where a parameter gets no gradient in one of them.
        gradient = torch.cat(
            [
                (torch.zeros_like(p) if g is None else g).flatten().float()
                for p, g in zip(parameters, found, strict=True)
            ]
        )
        all_reduce(gradient, 'mean')
        return gradient.norm() / scale

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Mapping[str, Any] | None = None,
    ) -> None:
        """Log what was seen in the step."""
        if self._distillation is None or not self._losses:  # the student's train_step called no forward
            return  # DistillationHook, which follows, says so
        values = dict(zip(self._losses, torch.stack([*self._losses.values()]).tolist(), strict=True))
        total = sum(map(abs, values.values()))
        found: dict[str, Any] = {}
        for term in self._distillation.terms:
            if weight := term.current_weight():
                found[f'raw_loss/{term.name}'] = values[term.name] / weight
            else:  # the log would repeat its last value
                runner.message_hub.log_scalars.pop(f'train/raw_loss/{term.name}', None)
            found[f'weight/{term.name}'] = weight
        found |= {f'loss_share/{name}': value / total if total else 0.0 for name, value in values.items()}
        found['teacher_time'] = self._teacher_time()
        found |= {f'gradient/{name}': norm for name, norm in self._norms.items()}
        self._norms = {}
        for name, value in found.items():
            # Not in checkpoints: the log of a run that is resumed without this hook would repeat them, too.
            runner.message_hub.update_scalar(f'train/{name}', value, resumed=False)

    def after_train(self, runner: Runner) -> None:
        """Watch no longer."""
        if self._distillation is not None:
            self._distillation.observer = None
