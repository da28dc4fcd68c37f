"""A student with its distillation as one model."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from kd_plugins.checkpoint import weights_of
from kd_plugins.distillation.distillation import Distillation
from kd_plugins.errors import UserError
from kd_plugins.models.composite import Composite, check_input_shape, config_of
from kd_plugins.registry import MODELS
from kd_plugins.utils.random import preserved_rng


@MODELS.register_module()
class Distiller(Composite):
    """A student that learns from a teacher, and otherwise behaves as the student alone.

    ``state_dict`` is the student's, so that a checkpoint loads straight into it. Trainable adapters are kept in the
    metadata of that dictionary, where torch keeps versions of modules, and are restored on resuming; by ``load_from``
    too, where a :class:`~kd_plugins.hooks.DistillationHook` starts new ones. Attributes that a Distiller does not have
    itself are read from and set on the student: mmdet's and mmpretrain's hooks switch parts of a model by them
    (``model.bbox_head.use_l1 = True``).

    Args:
        student: Config dict of the student.
        teacher: ``dict(config=..., checkpoint=...)``, see :func:`~kd_plugins.distillation.sources.build_teacher`;
            or a list of them.
        terms: Config dicts of terms, see :class:`~kd_plugins.distillation.term.Term`.
        input_shape: Shape (C, H, W) of the images in the dry run that checks the terms and sizes the adapters.
        data_preprocessor: Config dict of the student's preprocessor, where ``student`` has none (mmengine passes the
            config's here).
        task: What becomes of the task's losses: ``'train'``, ``'log'`` or ``'off'``, see
            :class:`kd_plugins.hooks.DistillationHook`, also for what data-parallel needs without them.

    Raises:
        UserError: The dry run finds an error in a term, or the student has a train_step of its own.
    """

    def __init__(
        self,
        student: Mapping[str, Any],
        teacher: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        terms: Sequence[Mapping[str, Any]],
        input_shape: Sequence[int] = (3, 224, 224),
        data_preprocessor: Mapping[str, Any] | None = None,
        task: str | bool = 'train',
    ) -> None:
        super().__init__(config_of(student, data_preprocessor))
        network = self.student
        if type(network).train_step is not BaseModel.train_step and not isinstance(network, Composite):
            raise UserError(
                f'Distiller: {type(network).__name__} has a train_step of its own, which Distiller does not call: '
                'use DistillationHook'
            )
        # Not by our own __setattr__: a student may have such an attribute.
        super().__setattr__('distillation', Distillation(network, teacher, terms, task))
        check_input_shape(input_shape)
        channels, height, width = input_shape
        sample = BaseDataElement(
            metainfo=dict(
                img_shape=(height, width),
                ori_shape=(height, width),
                pad_shape=(height, width),
                batch_input_shape=(height, width),
                scale_factor=(1.0, 1.0),
            )
        )
        with preserved_rng():
            images = torch.randn(2, channels, height, width)
        try:
            features = self.distillation.probe(network, images, [sample, sample.clone()])
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f'Distiller: a dry run on two random images of input_shape={tuple(input_shape)} failed '
                f'({type(error).__name__}: {error}): give the input_shape of the data, tap modules that run before '
                'annotations are needed, or use DistillationHook, whose dry run uses images of the data'
            ) from error
        for line in self.distillation.prepare(*features, images):
            print_log(f'distillation term {line}', 'current')
        for each in self.distillation.teachers:
            each.origins.watch()
        self.register_state_dict_post_hook(_save_adapters)
        self.register_load_state_dict_pre_hook(_load_adapters)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            student = self.__dict__.get('_modules', {}).get('student')
            if student is None or name.startswith('__'):
                raise
            return getattr(student, name)

    def __setattr__(self, name: str, value: Any) -> None:
        student = self.__dict__.get('_modules', {}).get('student')
        if (
            student is None
            or name in self.__dict__
            or name in self._modules
            or hasattr(type(self), name)
            or (not hasattr(student, name))
        ):
            super().__setattr__(name, value)
        else:
            setattr(student, name, value)

    def parts(self) -> dict[str, nn.Module]:
        """Return the student, whose keys have no prefix in ``state_dict``."""
        return {'': self.student}

    def deployable(self, state_dict: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Return the student's weights, without the adapters in their metadata."""
        weights: Any = weights_of(state_dict, 'the checkpoint')
        versions = weights._metadata.get('', {})
        weights._metadata[''] = {key: value for key, value in versions.items() if key != 'distillation'}
        split = getattr(self.student, 'deployable', lambda weights: {'student': weights})
        return split(weights)

    def get_layer_depth(self, param_name: str) -> tuple[int, int]:
        """Return the depth of a layer in the student, for layer-wise learning rates."""
        return self.student.get_layer_depth(param_name.removeprefix('student.'))

    def parse_losses(self, losses: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum the losses as the student does."""
        return self.student.parse_losses(losses)

    def val_step(self, data: Any) -> list[Any]:
        """Predict as the student does."""
        return self.student.val_step(data)

    def test_step(self, data: Any) -> list[Any]:
        """Predict as the student does."""
        return self.student.test_step(data)

    def forward(self, inputs: Tensor, data_samples: Sequence[Any] | None = None, mode: str = 'tensor') -> Any:
        """Return what the student returns; in mode ``loss``, its losses, if any, and those of the terms."""
        if mode != 'loss':
            return self.student(inputs, data_samples, mode=mode)
        return self.distillation.losses(partial(self.student, inputs, data_samples), inputs, data_samples)


def _save_adapters(
    module: Distiller, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any]
) -> None:
    keys = [key for key in state_dict if key.startswith(f'{prefix}distillation.')]
    if keys:
        local_metadata['distillation'] = {key.removeprefix(prefix): state_dict.pop(key).detach().cpu() for key in keys}


def _load_adapters(
    module: Distiller, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any], *_: Any
) -> None:
    current = {f'distillation.{k}': v for k, v in module.distillation.state_dict().items()}
    state_dict.update({prefix + k: v for k, v in local_metadata.get('distillation', current).items()})
