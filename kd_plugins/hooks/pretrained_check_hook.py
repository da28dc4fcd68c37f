"""A check of pretrained modules before training."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from kd_plugins.pretrained import check_pretrained
from kd_plugins.registry import HOOKS
from kd_plugins.utils.models import unwrapped


@HOOKS.register_module()
class PretrainedCheckHook(Hook):
    """Checks that every ``init_cfg=dict(type='Pretrained', ...)`` has loaded its checkpoint, tensor for tensor.

    mmengine itself only logs tensors that do not fit. See :func:`~kd_plugins.pretrained.check_pretrained`.

    Raises:
        UserError: Before training: a checkpoint does not fit its module.
    """

    def before_train(self, runner: Runner) -> None:
        """Compare every module that has a pretrained ``init_cfg`` with its file, except in a resumed run."""
        if runner.iter or runner._load_from:
            return
        model = unwrapped(runner.model)
        for name, found, path in check_pretrained(model):
            runner.logger.info(f'{name or "the model"}: {len(found)} tensors are those of {path}')
