"""A report on every handed-over backbone."""

import re
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from kd_plugins.checkpoint import read_checkpoint, state_dict_of
from kd_plugins.errors import UserError
from kd_plugins.registry import HOOKS


@HOOKS.register_module()
class HandoverHook(Hook):
    """Checks that what ``init_cfg=dict(type='Pretrained', ...)`` promised has arrived, tensor for tensor.

    mmengine loads such a checkpoint loosely: with a wrong prefix nothing is loaded, and training runs on from random
    weights. Here a tensor that is missing in the file, left over under the prefix, of another shape, or not equal to
    the module's ends the run before its first step.

    Raises:
        UserError: The checkpoint and the module do not fit.
    """

    def before_train(self, runner: Runner) -> None:
        """Compare every module that has a pretrained ``init_cfg`` with its file; a resumed run is left alone."""
        if runner.iter or runner._load_from:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        for name, module in model.named_modules():
            for record in _records(getattr(module, 'init_cfg', None)):
                if str(record.get('type')).endswith('Pretrained') and re.match(
                        r'https?://|(?!\w[\w-]*://)', record['checkpoint']):
                    self._check(runner, name or 'the model', module, record['checkpoint'], record.get('prefix') or '')

    def _check(self, runner: Runner, name: str, module: torch.nn.Module, path: str, prefix: str) -> None:
        file = {key.removeprefix(prefix): value for key, value in state_dict_of(read_checkpoint(path)).items()
                if key.startswith(prefix)}
        own = module.state_dict()
        missing = sorted(k for k in own.keys() - file.keys() if not k.endswith('num_batches_tracked'))  # old files
        left_over = sorted(file.keys() - own.keys()) if prefix else []
        differing = [k for k in own if k in file and (own[k].shape != file[k].shape or
                                                      not torch.equal(own[k].cpu(), file[k]))]
        for problem, keys in (('has no', missing), ('has left over', left_over), ('differs in', differing)):
            if keys:
                more = f' and {len(keys) - 3} more' if len(keys) > 3 else ''
                raise UserError(f"{name} was not handed over: under '{prefix}', {path} {problem} {', '.join(keys[:3])}"
                                f'{more}; both configs must describe the same {name}')
        runner.logger.info(f'{name}: all {len(own)} tensors are those of {path}')


def _records(init_cfg: Any) -> list[dict[str, Any]]:
    return [init_cfg] if isinstance(init_cfg, dict) else list(init_cfg or [])
