"""Distillation as a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor

from kd_plugins.distiller import Distillation, preserved_rng
from kd_plugins.errors import UserError
from kd_plugins.registry import MODELS


@MODELS.register_module()
class Distiller(BaseModel):
    """A student that learns from a teacher; to everyone else, the student.

    ``state_dict`` holds the student's keys alone, so that a checkpoint loads straight into it. Trainable adapters
    travel in that dictionary's metadata, where torch keeps a module's version; they come back on resuming.

    Args:
        student: The student's model record.
        teacher: ``dict(config=..., checkpoint=...)``, see :func:`kd_plugins.teacher.build_teacher`; or a list of them.
        terms: Records of :class:`kd_plugins.term.Term`.
        input_shape: (C, H, W) of the images in the dry run that checks the terms and sizes the adapters.
        data_preprocessor: The student's, where its record has none (mmengine passes the config's here).
        task: False trains on the terms alone, see :class:`kd_plugins.hooks.DistillationHook`; also for what
            data-parallel then needs.

    Raises:
        UserError: The dry run finds something wrong with a term.
    """

    def __init__(
        self, student: Mapping[str, Any], teacher: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        terms: Sequence[Mapping[str, Any]], input_shape: Sequence[int] = (3, 224, 224),
        data_preprocessor: Mapping[str, Any] | None = None, task: bool = True,
    ) -> None:
        record = dict(student)
        record.setdefault('data_preprocessor', data_preprocessor)
        network = MODELS.build(record)
        super().__init__(network.data_preprocessor)
        self.student = network
        self.distillation = Distillation(network, teacher, terms, task)
        channels, height, width = input_shape
        sample = BaseDataElement(metainfo=dict(
            img_shape=(height, width), ori_shape=(height, width), pad_shape=(height, width),
            batch_input_shape=(height, width), scale_factor=(1.0, 1.0)))
        with preserved_rng():
            images = torch.randn(2, channels, height, width)
        for line in self.distillation.dry_run(network, images, [sample, sample.clone()]):
            print_log(f'distillation term {line}', 'current')
        self.register_state_dict_post_hook(_keep_student)
        self.register_load_state_dict_pre_hook(_place_student)

    def init_weights(self) -> None:
        """Initialise the student."""
        self.student.init_weights()

    def forward(self, inputs: Tensor, data_samples: Sequence[Any] | None = None, mode: str = 'tensor') -> Any:
        """Answer as the student; in mode ``loss``, with the distillation's losses added."""
        if mode != 'loss':
            return self.student(inputs, data_samples, mode=mode)
        targets = self.distillation.ask(inputs, data_samples)
        with self.distillation.recorder.recording() as features:
            losses = self.student(inputs, data_samples, mode='loss')
        return self.distillation.add_to(losses, features, targets, inputs, data_samples)


def _keep_student(
    module: Distiller, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any]
) -> None:
    adapters = {}
    for key in [k for k in state_dict if k.startswith(prefix)]:
        name, value = key.removeprefix(prefix), state_dict.pop(key)
        if name.startswith('student.'):
            state_dict[prefix + name.removeprefix('student.')] = value
        elif name.startswith('distillation.'):
            adapters[name] = value.detach().cpu()
    if adapters:
        local_metadata['distillation'] = adapters


def _place_student(
    module: Distiller, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any], *_: Any
) -> None:
    for key in [k for k in state_dict if k.startswith(prefix)]:
        state_dict[f'{prefix}student.{key.removeprefix(prefix)}'] = state_dict.pop(key)
    own = {f'distillation.{k}': v for k, v in module.distillation.state_dict().items()}
    saved = local_metadata.get('distillation', own)
    if saved.keys() != own.keys():
        raise UserError(f'the checkpoint holds adapters {sorted(saved)}, this config has {sorted(own)}: '
                        'resume with the config that wrote it')
    state_dict.update({prefix + k: v for k, v in saved.items()})
