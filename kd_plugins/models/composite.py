"""Models made of whole networks."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mmengine.model import BaseModel
from torch import Tensor, nn

from kd_plugins.checkpoint import load_loosely


class Composite(BaseModel):
    """A model some of whose children are networks, or lists of them, that exist by themselves too.

    Each is saved by its own ``state_dict()`` and loaded by its own ``load_state_dict()``, since some rename their keys
    there (mmpretrain's wrapper of timm takes a prefix off): of a network within another, torch drops what such hooks
    return.
    """

    _holders: Sequence[str]  # the names of these children

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_load_state_dict_post_hook(_put_back)

    def parts(self) -> dict[str, nn.Module]:
        """Return the networks, each by what comes before its keys in ``state_dict``."""
        found: dict[str, nn.Module] = {}
        for name in self._holders:
            holder = getattr(self, name)
            found |= (
                {f'{name}.{i}.': x for i, x in enumerate(holder)}
                if isinstance(holder, nn.ModuleList)
                else {f'{name}.': holder}
            )
        return found

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
        self.__dict__['_aside'] = self._set_aside()  # torch and mmengine would go on to them
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    @contextmanager
    def _without_parts(self) -> Iterator[None]:
        aside = self._set_aside()
        try:
            yield
        finally:
            self._modules.update(aside)

    def _set_aside(self) -> dict[str, nn.Module]:
        aside = {name: self._modules[name] for name in self._holders}
        self._modules.update(dict.fromkeys(self._holders))  # they keep their places
        return aside


def _put_back(module: Composite, keys: Any) -> None:
    module._modules.update(module.__dict__.pop('_aside'))
