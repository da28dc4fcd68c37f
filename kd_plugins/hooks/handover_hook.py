"""A report on every handed-over backbone."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from kd_plugins.checkpoint import check_pretrained
from kd_plugins.registry import HOOKS
from kd_plugins.utils.models import unwrapped


@HOOKS.register_module()
class HandoverHook(Hook):
    """Checks that what ``init_cfg=dict(type='Pretrained', ...)`` promised has arrived, tensor for tensor.

    See :func:`~kd_plugins.checkpoint.check_pretrained`: what has not ends the run before its first step.

    Raises:
        UserError: The checkpoint and the module do not fit.
    """

    def before_train(self, runner: Runner) -> None:
        """Compare every module that has a pretrained ``init_cfg`` with its file; a resumed run is left alone."""
        if runner.iter or runner._load_from:
            return
        model = unwrapped(runner.model)
        for name, found, path in check_pretrained(model):
            runner.logger.info(f'{name or "the model"}: {len(found)} tensors are those of {path}')
