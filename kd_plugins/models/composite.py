"""Models composed of a student and other whole networks."""

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmengine.model import BaseModel
from torch import Tensor, nn

from kd_plugins.checkpoint import load_loosely
from kd_plugins.errors import UserError
from kd_plugins.registry import MODELS, check_model
from kd_plugins.utils.names import brief
from kd_plugins.utils.random import preserved_rng


def check_input_shape(input_shape: object) -> None:
    """Raise UserError unless a shape is one of images, (C, H, W)."""
    if (
        not isinstance(input_shape, (list, tuple))
        or len(input_shape) != 3
        or not all(isinstance(x, int) and x > 0 for x in input_shape)
    ):
        raise UserError(f'input_shape is {input_shape!r}, expected the (C, H, W) of the images, as (3, 224, 224)')


def config_of(student: object, data_preprocessor: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a student's config dict, with the preprocessor that mmengine passes where it has none.

    Raises:
        UserError: The student is no config dict.
    """
    if not isinstance(student, Mapping):
        raise UserError(
            f'student must be the config dict of a model of mmpretrain, mmdet or mmseg, got {brief(student)}: for a '
            'network of torchvision or your own, call the losses in a loop of yours (kd_plugins/README.md)'
        )
    return dict(data_preprocessor=data_preprocessor) | dict(student)


class Composite(BaseModel):
    """A student, and other networks in a ``ModuleList`` that a subclass may add.

    Each network is saved by its own ``state_dict()`` and loaded by its own ``load_state_dict()``, since some rename
    their keys there (mmpretrain's wrapper of timm removes a prefix), and torch ignores the result of such hooks for
    submodules.

    Args:
        student: Config dict of the student, with its ``data_preprocessor``.

    Raises:
        UserError: The student is a part of a model, as a backbone.
    """

    _others: str | None = None  # name of the other networks' ModuleList

    def __init__(self, student: Mapping[str, Any]) -> None:
        check_model('student', student)
        network = MODELS.build(copy.deepcopy(dict(student)))  # mmdet modifies config dicts while building
        super().__init__(network.data_preprocessor)
        self.student = network
        self.register_load_state_dict_post_hook(_attach_parts)

    @property
    def _networks(self) -> list[Any]:
        """The student and the other networks."""
        return [self.student, *(getattr(self, self._others) if self._others else ())]

    def parts(self) -> dict[str, nn.Module]:
        """Return the networks by the prefix of their keys in ``state_dict``."""
        student, *others = self._networks
        return {'student.': student} | {f'{self._others}.{i}.': network for i, network in enumerate(others)}

    def init_weights(self) -> None:
        """Initialise the student as without the other networks, then these, each with random draws of its own."""
        student, *others = self._networks
        student.init_weights()
        with preserved_rng():
            for network in others:
                network.init_weights()

    def state_dict(
        self,
        *,
        destination: Any = None,  # a dict[str, Tensor], which torch gives an attribute _metadata
        prefix: str = '',
        keep_vars: bool = False,
    ) -> dict[str, Tensor]:
        """Return the networks' weights as they save them, and those of the other children."""
        if destination is None:
            destination = OrderedDict()
            destination._metadata = OrderedDict()
        versions = {}
        for start, part in self.parts().items():
            weights = part.state_dict(keep_vars=keep_vars)
            versions[start] = getattr(weights, '_metadata', {})
            destination.update({f'{prefix}{start}{key}': value for key, value in weights.items()})
            destination._metadata |= {
                f'{prefix}{start}{key}'.rstrip('.'): value for key, value in versions[start].items()
            }
        with self._without_parts():
            super().state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)
        destination._metadata[prefix[:-1]]['parts'] = versions
        return destination

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for start, part in self.parts().items():
            start = prefix + start
            weights: Any = OrderedDict(
                (key.removeprefix(start), state_dict.pop(key)) for key in list(state_dict) if key.startswith(start)
            )
            weights._metadata = local_metadata.get('parts', {}).get(start.removeprefix(prefix), {})
            misfit = load_loosely(part, weights)
            missing_keys += [start + name for name in misfit.missing]
            unexpected_keys += [start + name for name in misfit.left_over]
            error_msgs += misfit.mismatched
        self.__dict__['_detached'] = self._detach_parts()  # else torch and mmengine would load them again
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    @contextmanager
    def _without_parts(self) -> Iterator[None]:
        detached = self._detach_parts()
        try:
            yield
        finally:
            self._modules.update(detached)

    def _detach_parts(self) -> dict[str, nn.Module]:
        names = [name for name in ('student', self._others) if name]
        detached = {name: self._modules[name] for name in names}
        self._modules.update(dict.fromkeys(names))  # None keeps the order of the children
        return detached


def _attach_parts(module: Composite, keys: Any) -> None:
    module._modules.update(module.__dict__.pop('_detached'))
