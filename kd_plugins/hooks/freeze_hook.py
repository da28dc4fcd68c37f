"""Frozen parts of a model."""

from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.runner import Runner

from kd_plugins.errors import UserError
from kd_plugins.registry import HOOKS
from kd_plugins.utils.models import unwrapped
from kd_plugins.utils.names import nearest


@HOOKS.register_module()
class FreezeHook(Hook):
    """Freezes submodules: no gradient, always in ``eval()``, so that BatchNorm statistics do not change either.

    Their weights and buffers are the same bytes after training as before. They stay in the checkpoint, and in the
    optimiser, which skips parameters without a gradient.

    Args:
        modules: Names of submodules, ``'backbone'`` for a linear probe.

    Raises:
        UserError: Before training: the model has no such module, or nothing is left to train.
    """

    priority = 'VERY_HIGH'

    def __init__(self, modules: Sequence[str]) -> None:
        self.modules = [modules] if isinstance(modules, str) else list(modules)

    def before_run(self, runner: Runner) -> None:
        """Freeze the modules, and wrap the model again for data-parallel, which has registered them."""
        model = unwrapped(runner.model)
        known = dict(model.named_modules())
        for name in self.modules:
            if not name or name not in known:
                raise UserError(
                    f"FreezeHook: {type(model).__name__} has no module '{name}' to freeze; {nearest(name, known)}"
                )
            known[name].requires_grad_(False)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError(
                f'FreezeHook: with {", ".join(self.modules)} frozen nothing of {type(model).__name__} is '
                'left to train: name fewer modules'
            )
        if model is not runner.model:
            runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), model)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Undo the ``train()`` that mmengine's loops call on the whole model."""
        model = unwrapped(runner.model)
        for name in self.modules:
            model.get_submodule(name).eval()
