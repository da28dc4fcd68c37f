"""The images that a student's preprocessor makes its batches of."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

# They do no more to images than normalise and pad them, except by batch_augments.
_NORMALISING = {
    'mmengine.model.base_model.data_preprocessor.ImgDataPreprocessor',
    'mmpretrain.models.utils.data_preprocessor.ClsDataPreprocessor',
    'mmdet.models.data_preprocessors.data_preprocessor.DetDataPreprocessor',
    'mmseg.models.data_preprocessor.SegDataPreProcessor',
}


class Normalisation(NamedTuple):
    """What a preprocessor does to the pixels of an image: ``(x - mean) / std``, perhaps of reversed channels."""

    mean: Tensor
    std: Tensor
    reversed: bool
    pad: float

    @property
    def sees_rgb(self) -> bool:
        """Whether the network sees RGB: after a conversion, or of a data set of RGB arrays (CIFAR).

        Without a conversion images are BGR, as OpenMMLab loads files. A mean that is more red than blue, as natural
        images are, tells arrays of RGB.
        """
        return self.reversed or bool(self.mean.flatten()[0] > self.mean.flatten()[-1])

    @property
    def order_is_open(self) -> bool:
        """Whether the means of colour images do not tell RGB from BGR, being one number."""
        return self.mean.numel() == 3 and bool((self.mean == self.mean.flatten()[0]).all())


def normalisation_of(preprocessor: Any) -> Normalisation:
    """Return a preprocessor's normalisation; without mean and std pixels stay as they are."""
    reversed_ = getattr(preprocessor, '_channel_conversion', getattr(preprocessor, 'to_rgb', False))
    parts = bool(reversed_), float(getattr(preprocessor, 'pad_value', 0))
    if not getattr(preprocessor, '_enable_normalize', False):
        return Normalisation(torch.zeros(1, 1, 1), torch.ones(1, 1, 1), *parts)
    return Normalisation(preprocessor.mean.cpu(), preprocessor.std.cpu(), *parts)


class Origin(NamedTuple):
    """Images, and in words how a batch follows from them."""

    images: Tensor | list[Tensor]
    way: str


class Origins:
    """Knows which images a student's preprocessor made its last batch of.

    They have a quarter of the bytes of the normalised batch. They stand for it where the preprocessor is known to
    normalise and pad alone, and the batch is the very tensor that it returned; a tensor that was written to since
    stands for nothing. No tensor is kept alive.

    Args:
        preprocessor: The student's preprocessor.
    """

    def __init__(self, preprocessor: nn.Module | None) -> None:
        self._preprocessor: Any = preprocessor
        self._tensors: list[tuple[weakref.ref[Tensor], int]] = []  # the batch and the images, and their versions
        self._stacked = False
        self._handle: RemovableHandle | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> 'Origins':
        return self  # a copy of the student has our hook, too

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | dict(_tensors=[])

    def watch(self) -> None:
        """Look at the preprocessor's batches from now on."""
        kind = type(self._preprocessor)
        known = f'{kind.__module__}.{kind.__qualname__}' in _NORMALISING and 'forward' not in vars(self._preprocessor)
        if self._handle is None and known:  # before other hooks, which may change the batch
            self._handle = self._preprocessor.register_forward_hook(self._remember, prepend=True)

    def close(self) -> None:
        """Look at no more batches."""
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._tensors = None, []

    def _remember(self, preprocessor: nn.Module, args: Sequence[Any], output: Any) -> None:
        images = args[0]['inputs'] if args and isinstance(args[0], Mapping) else []
        self._stacked = isinstance(images, Tensor)
        tensors = [output['inputs'], *([images] if self._stacked else images)]
        usable = len(tensors) > 1 and not any(x.is_inference() for x in tensors)  # which have no version
        if usable and not getattr(preprocessor, 'batch_augments', None):
            self._tensors = [(weakref.ref(x), x._version) for x in tensors]
        else:
            self._tensors = []

    def of(self, inputs: Tensor) -> Origin | None:
        """Return what a batch was made of, or None where that is not known for sure."""
        tensors = [x for tensor, version in self._tensors if (x := tensor()) is not None and x._version == version]
        if len(tensors) < len(self._tensors) or not tensors or tensors[0] is not inputs:
            return None
        mean, std, *others = normalisation_of(self._preprocessor)
        images = tensors[1] if self._stacked else tensors[1:]
        return Origin(images, f'{mean.tolist()} {std.tolist()} {others}')
