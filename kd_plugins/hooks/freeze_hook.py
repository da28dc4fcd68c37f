"""Parts of a model that do not train."""

from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from kd_plugins.errors import UserError
from kd_plugins.registry import HOOKS
from kd_plugins.utils.models import unwrapped
from kd_plugins.utils.names import nearest


@HOOKS.register_module()
class FreezeHook(Hook):
    """Keeps submodules as they are: no gradient, always in ``eval()``, BatchNorm statistics included.

    Their weights and buffers are the same bytes after training as before. They stay in the checkpoint, and in the
    optimiser, which passes over what has no gradient.

    Args:
        modules: Names of submodules, as ``'backbone'`` for a linear probe.

    Raises:
        UserError: Before training, when the model has no such module, or nothing would be left to train.
    """

    priority = 'VERY_HIGH'

    def __init__(self, modules: Sequence[str]) -> None:
        self.modules = [modules] if isinstance(modules, str) else list(modules)

    def before_run(self, runner: Runner) -> None:
        """Freeze the modules; data-parallel, which has counted their gradients in, wraps the model anew."""
        wrapped = is_model_wrapper(runner.model)
        model = runner.model.module if wrapped else runner.model
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
        if wrapped:
            runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), model)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Undo the ``train()`` that mmengine's loops call on the whole model."""
        model = unwrapped(runner.model)
        for name in self.modules:
            model.get_submodule(name).eval()
