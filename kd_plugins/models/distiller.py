"""Distillation as a model."""

import copy
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
from kd_plugins.models.composite import Composite
from kd_plugins.registry import MODELS
from kd_plugins.utils.random import preserved_rng


@MODELS.register_module()
class Distiller(Composite):
    """A student that learns from a teacher; to everyone else, the student.

    ``state_dict`` is the student's, so that a checkpoint loads straight into it. Trainable adapters travel in that
    dictionary's metadata, where torch keeps a module's version; they come back on resuming. Attributes that a Distiller
    does not have itself are the student's, to read and to set: mmdet's and mmpretrain's hooks switch parts of a model
    by them (``model.bbox_head.use_l1 = True``).

    Args:
        student: Config dict of the student.
        teacher: ``dict(config=..., checkpoint=...)``, see :func:`~kd_plugins.distillation.sources.build_teacher`;
            or a list of them.
        terms: Config dicts of terms, see :class:`~kd_plugins.distillation.term.Term`.
        input_shape: (C, H, W) of the images in the dry run that checks the terms and sizes the adapters.
        data_preprocessor: The student's, where its config dict has none (mmengine passes the config's here).
        task: False trains on the terms alone, see :class:`kd_plugins.hooks.DistillationHook`; also for what
            data-parallel then needs.

    Raises:
        UserError: The dry run finds something wrong with a term; or the student has a train_step of its own.
    """

    _holders = ('student',)

    def __init__(
        self,
        student: Mapping[str, Any],
        teacher: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        terms: Sequence[Mapping[str, Any]],
        input_shape: Sequence[int] = (3, 224, 224),
        data_preprocessor: Mapping[str, Any] | None = None,
        task: bool = True,
    ) -> None:
        config = copy.deepcopy(dict(student))  # mmdet changes configs as it builds
        config.setdefault('data_preprocessor', data_preprocessor)
        network = MODELS.build(config)
        if type(network).train_step is not BaseModel.train_step and not isinstance(network, Composite):
            raise UserError(
                f'Distiller: {type(network).__name__} has a train_step of its own, which a model around it '
                'leaves out: use DistillationHook'
            )
        super().__init__(network.data_preprocessor)
        self.student = network
        super().__setattr__('distillation', Distillation(network, teacher, terms, task))  # a student may have its own
        if (
            not isinstance(input_shape, (list, tuple))
            or len(input_shape) != 3
            or not all(isinstance(x, int) and x > 0 for x in input_shape)
        ):
            raise UserError(f'input_shape is {input_shape!r}, expected the (C, H, W) of the images, as (3, 224, 224)')
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
            found = self.distillation.probe(network, images, [sample, sample.clone()])
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f'Distiller: a dry run on two made-up images of input_shape={tuple(input_shape)} failed '
                f'({type(error).__name__}: {error}): give the input_shape of the data, tap modules that run before '
                'annotations are needed, or use DistillationHook, whose dry run takes images of the data'
            ) from error
        for line in self.distillation.prepare(*found):
            print_log(f'distillation term {line}', 'current')
        self.register_state_dict_post_hook(_keep_adapters)
        self.register_load_state_dict_pre_hook(_place_adapters)

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
        """Return the student, whose keys have no prefix here."""
        return {'': self.student}

    def deployable(self, state_dict: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Return the student's weights, which have no more to do with the adapters."""
        weights: Any = weights_of(state_dict, 'the checkpoint')
        versions = weights._metadata.get('', {})
        weights._metadata[''] = {key: value for key, value in versions.items() if key != 'distillation'}
        split = getattr(self.student, 'deployable', lambda weights: {'student': weights})
        return split(weights)

    def get_layer_depth(self, param_name: str) -> tuple[int, int]:
        """Return the depth of a layer as the student numbers it, for layer-wise learning rates."""
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

    def init_weights(self) -> None:
        """Initialise the student."""
        self.student.init_weights()

    def forward(self, inputs: Tensor, data_samples: Sequence[Any] | None = None, mode: str = 'tensor') -> Any:
        """Answer as the student; in mode ``loss``, with the distillation's losses added."""
        if mode != 'loss':
            return self.student(inputs, data_samples, mode=mode)
        run_student = partial(self.student, inputs, data_samples, mode='loss')
        return self.distillation.losses(run_student, inputs, data_samples)


def _keep_adapters(
    module: Distiller, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any]
) -> None:
    own = [key for key in state_dict if key.startswith(f'{prefix}distillation.')]
    if own:
        local_metadata['distillation'] = {key.removeprefix(prefix): state_dict.pop(key).detach().cpu() for key in own}


def _place_adapters(
    module: Distiller, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any], *_: Any
) -> None:
    own = {f'distillation.{k}': v for k, v in module.distillation.state_dict().items()}
    state_dict.update({prefix + k: v for k, v in local_metadata.get('distillation', own).items()})
