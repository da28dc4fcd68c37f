"""The frozen teacher."""

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel, ImgDataPreprocessor
from torch import Tensor, nn
from torch.nn.functional import interpolate

from kd_plugins.distillation.cache import FeatureCache
from kd_plugins.distillation.folding import BatchNormFolding
from kd_plugins.distillation.layout import Size, size_of
from kd_plugins.distillation.origins import Origins, normalisation_of
from kd_plugins.distillation.recorder import Features, Recorder
from kd_plugins.errors import UserError
from kd_plugins.functional.gram import as_float, resized
from kd_plugins.utils.models import to_channels_last

_DARK = 8  # normalised pixels stay below, and a batch of photographs of 0 to 255 does not


class RGBImages(ImgDataPreprocessor):
    """Normalisation of a network of another library, which takes RGB images.

    The student's preprocessor states a conversion, not an order: with ``to_rgb=False`` its batch is BGR, as OpenMMLab
    loads images, or RGB where the data set is (CIFAR). Its mean tells them apart: natural images are more red than
    blue.

    Args:
        mean: Mean of the channels, in the network's order, of pixels of 0 to 255.
        std: Their standard deviation.
        bgr: Whether the network takes BGR images after all.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], bgr: bool = False) -> None:
        super().__init__(mean, std, bgr_to_rgb=not bgr)


class _Renormalise(nn.Module):
    """Converts a batch normalised for the student into one normalised for the teacher.

    Per channel ``(x * std_s + mean_s - mean_t) / std_t``, with channels reversed where one of the two networks sees RGB
    and the other BGR; padding is set to the teacher's padding value. An image preprocessor without mean and std means
    raw pixels, a mean of 0 and a std of 1. A teacher without an image preprocessor (``BaseDataPreprocessor``) gets the
    student's batch as it is.

    Args:
        student: The student's preprocessor; None where it equals the teacher's.
        teacher: The teacher's preprocessor.

    Raises:
        UserError: The teacher has an image preprocessor and the student has none.
    """

    student_mean: Tensor
    student_std: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, student: nn.Module | None, teacher: nn.Module | None) -> None:
        super().__init__()

        def takes_images(preprocessor: nn.Module | None) -> bool:
            return hasattr(preprocessor, '_enable_normalize')

        if takes_images(teacher) and student is not None and not takes_images(student):
            raise UserError(
                "the teacher's data_preprocessor defines a normalisation of images, but the student's, "
                f"{type(student).__name__}, defines none: give the student one of mmengine's, mmdet's or "
                "mmpretrain's, or give the teacher data_preprocessor={} to pass it the student's batch as it is"
            )
        own, theirs = normalisation_of(student), normalisation_of(teacher)
        (mean_s, std_s, flip_s, pad_s), (mean_t, std_t, flip_t, pad) = own, theirs
        if len({x.numel() for x in (mean_s, std_s, mean_t, std_t)} - {1}) > 1:
            raise UserError(
                f"the teacher's data_preprocessor has a mean of {mean_t.numel()} channels, the student's "
                f'of {mean_s.numel()}: both get the same images, so give both as many channels'
            )
        self.student_pad, self.pad = pad_s, pad
        self.register_buffer('student_mean', mean_s, persistent=False)
        self.register_buffer('student_std', std_s, persistent=False)
        self._white = 1 if max(mean_t.max(), std_t.max()) < 1 else 255  # that the teacher's numbers are for
        if isinstance(teacher, RGBImages):
            self.flip = own.sees_rgb != flip_t
        else:  # two that convert, or two that do not, see the same images in the same order, whichever that is
            self.flip = flip_s != flip_t and own.sees_rgb != theirs.sees_rgb
        if not flip_s and (flip_t or self.flip) and own.order_is_open:
            print_log(
                "the student's data_preprocessor has one mean for all channels and converts nothing, so its images are "
                'taken for BGR, as files are loaded, and the teacher gets RGB: of a data set of RGB arrays, give the '
                'teacher data_preprocessor=dict(mean=..., std=..., to_rgb=False)',
                'current',
                logging.WARNING,
            )
        if self.flip:
            mean_s, std_s = mean_s.flip(0), std_s.flip(0)
        self.register_buffer('scale', std_s / std_t, persistent=False)
        self.register_buffer('shift', (mean_s - mean_t) / std_t, persistent=False)
        self._alike = bool((self.scale == 1).all() and (self.shift == 0).all())
        self.identity = (
            student is None
            or not takes_images(teacher)
            or (not self.flip and pad_s == pad and torch.equal(mean_s, mean_t) and torch.equal(std_s, std_t))
        )

    def check_range(self, inputs: Tensor) -> None:
        """Raise UserError where a batch is not of pixels as the teacher states them, but was scaled before."""
        if self.identity or not inputs.numel() or self._alike:
            return
        values = inputs.flatten(2).float()
        ends = torch.stack([values.amin((0, 2)), values.amax((0, 2))])
        least, most = ends * self.student_std.flatten() + self.student_mean.flatten()
        darkest, brightest = torch.stack([least.min(), most.max()]).tolist()
        # One colour alone tells nothing.
        if brightest > darkest and (brightest < _DARK) != (self._white == 1):
            raise UserError(
                f"the teacher's data_preprocessor is for pixels of 0 to {self._white}, but before the student's these "
                f'images reach {brightest:.3g}: where the pipeline scales or normalises them, move that into the '
                "data_preprocessor, or give the teacher's config dict a data_preprocessor for such images ({} takes "
                'them as they are)'
            )

    def forward(self, inputs: Tensor, data_samples: Sequence[Any] | None) -> Tensor:
        if self.identity:
            return inputs
        outputs = (inputs.flip(1) if self.flip else inputs) * self.scale + self.shift
        samples = () if data_samples is None else data_samples
        for index, sample in zip(range(len(outputs)), samples, strict=False):
            height, width = getattr(sample, 'img_shape', outputs.shape[-2:])[:2]
            if (height, width) != outputs.shape[-2:]:  # the write in place costs a copy where a gradient is needed
                # Some transforms (torchvision's in mmpretrain) do not update img_shape: check the pixels as well.
                padding = (inputs[index] == self.student_pad).all(0)
                padding[:height, :width] = False
                outputs[index].masked_fill_(padding, self.pad)
        return outputs


class Teacher:
    """A frozen network: no gradient, always in ``eval()``, never changed.

    It is not an ``nn.Module``: as an attribute of a model it stays out of ``state_dict``, ``parameters()``,
    ``train()`` and data-parallel wrapping, and a copy of that model (an EMA) shares it. Its owner moves it between
    devices with :meth:`apply`.

    On a CPU, :meth:`probe` makes it 1.5 to 2.3 times as fast: it runs channels-last, and its convolutions compute the
    BatchNorm that follows them, where that changes no feature by more than rounding.

    Args:
        model: The network; it is frozen here.
        taps: Names of the submodules whose outputs are recorded; ``''`` is the network itself.
        student_preprocessor: The student's data preprocessor, which normalises the inputs.
        cache: Folder of a :class:`kd_plugins.distillation.cache.FeatureCache`; None for no cache. A map that all terms
            pool to one size is kept so, see :meth:`pool`.
        bf16: Whether to run in bfloat16 and channels-last, whatever the student uses: three times as fast on a CPU with
            bfloat16 units. By default the teacher uses the student's precision and layout.
        size: Height and width to which the batch is resized for the teacher (bilinear, antialiased), or one number for
            both. By default the teacher sees the student's size.

    Raises:
        UserError: A tap is not a submodule, an option has an invalid value, or the two preprocessors do not match.
    """

    def __init__(
        self,
        model: nn.Module,
        taps: Iterable[str],
        student_preprocessor: nn.Module | None = None,
        cache: str | None = None,
        bf16: bool = False,
        size: int | Sequence[int] | None = None,
    ) -> None:
        if not isinstance(cache, (str, Path, type(None))):
            raise UserError(f"a teacher's cache must be a folder or None, got {cache!r}")
        if not isinstance(bf16, bool):
            raise UserError(f"a teacher's bf16 must be True or False, got {bf16!r}")
        sides = [size, size] if isinstance(size, int) else size
        if sides is not None and not (
            isinstance(sides, Sequence) and len(sides) == 2 and all(type(x) is int and x > 0 for x in sides)
        ):
            raise UserError(f"a teacher's size must be a number of pixels or (height, width), got {size!r}")
        model.eval()  # some networks of mmpretrain return None
        model.requires_grad_(False)
        self.model = model
        self._bf16 = bf16
        self._size = None if sides is None else (sides[0], sides[1])
        if self._size and hasattr(model, 'set_input_size') and not getattr(model, 'dynamic_img_size', False):
            model.set_input_size(self._size)  # type: ignore[operator]  # of timm's networks that take one size
        self._takes = _arguments_of(model)
        if bf16:
            to_channels_last(model)
        self.recorder = Recorder(model, taps := list(taps), whole=True, role='teacher')
        self._taps = taps
        self._folding: BatchNormFolding | None = None
        self._sizes: set[Size] = set()  # of images on which it has run
        self._convert = _Renormalise(student_preprocessor, getattr(model, 'data_preprocessor', None))
        self.origins = Origins(None if cache is None else student_preprocessor)
        self._cache = None
        self._pools: dict[tuple[int, ...], dict[str, Size]] = {}  # of taps, by the shape of an image
        if cache is not None:
            convert = self._convert
            self._cache = FeatureCache(
                cache,
                model,
                [
                    *taps,
                    str(
                        convert.identity or (convert.flip, convert.scale.tolist(), convert.shift.tolist(), convert.pad)
                    ),
                    *([str(self._size)] if self._size else []),
                ],
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> 'Teacher':
        return self

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply to every parameter and buffer, as ``nn.Module._apply`` does for ``.to()``."""
        if self._folding:
            self._folding.undo()
        leaves = self._folding is not None and not function(torch.empty(0)).is_cpu
        plain = leaves and not self._bf16  # channels-last is a CPU's choice
        self.model._apply((lambda x: function(x).contiguous()) if plain else function)
        self._convert._apply(function)
        if leaves:
            self._folding = None
        elif self._folding:
            self._folding.fold()
        self.model.eval()  # LeViT and its like compute a bias from their parameters here, which no _apply moves

    def expect(self, images: int) -> None:
        """Let a cache say so where more inputs than these come and none repeats."""
        if self._cache is not None:
            self._cache.expect(images)

    @property
    def caches(self) -> bool:
        """Whether features are kept on disk."""
        return self._cache is not None

    def pool(self, sizes: Mapping[str, Size], inputs: Tensor) -> None:
        """Let a cache keep maps as all terms pool them, a part of the bytes; others are returned as they are.

        Args:
            sizes: Height and width for each tap whose map is to be pooled.
            inputs: Batch of the shape for which this holds.
        """
        self._pools[tuple(inputs.shape[1:])] = dict(sorted(sizes.items()))

    def check_range(self, inputs: Tensor) -> None:
        """Check that a batch as the student's preprocessor returned it is of pixels as the teacher's states them.

        Raises:
            UserError: The pipeline has scaled or normalised them already, or the two state other scales.
        """
        self._convert.check_range(inputs)

    def input_size(self, inputs: Tensor) -> tuple[int, int]:
        """Return the height and width of the images that the network gets for a batch of the student's."""
        return self._size or size_of(inputs)

    @torch.no_grad()
    def probe(self, inputs: Tensor, data_samples: Sequence[Any] | None, fold: bool = True) -> Features:
        """Return the features at the taps, from the whole network, and find out which layers they do not need.

        Args:
            inputs: Images as the student's preprocessor returned them.
            data_samples: Annotations of the images.
            fold: Whether the network runs the faster way from now on; otherwise this is one forward pass.

        Raises:
            UserError: The teacher cannot run on images of this size.
        """
        if fold and self._folding is None and inputs.is_cpu:
            return self._folded(inputs, data_samples)
        features = self._probed(inputs, data_samples)
        if fold:
            self._check_repeats(features, self.features(inputs, data_samples))
        return features

    def _check_repeats(self, features: Features, others: Features) -> None:
        if not _equal(features, others, 0.01):
            raise UserError(
                f'the teacher, {type(self.model).__name__}, gives other features for the same images in every pass '
                '(random masking, or a dropout that stays on): take a network without that, as a ViTModel with the '
                'weights of a ViTMAEModel'
            )

    def _folded(self, inputs: Tensor, data_samples: Sequence[Any] | None) -> Features:
        """Return the features, and let the network run the faster way where that changes them by rounding at most."""
        features = self._probed(inputs, data_samples)
        self._folding = BatchNormFolding(self.model, self._taps)
        to_channels_last(self.model)
        try:
            with self._folding.watching():
                same = _equal(features, self.features(inputs, data_samples))
        except Exception:  # as of a network that views its maps as rows
            same = False
        if not same:
            self._folding.forget()
            if not self._bf16:
                self.model._apply(Tensor.contiguous)
            again = self._probed(inputs, data_samples)
            self._check_repeats(features, again)
            return again
        if self._folding.fold() and not _equal(features, self.features(inputs, data_samples)):
            self._folding.forget()
        return features

    @contextmanager
    def unfolded(self) -> Iterator[None]:
        """Let every module compute what it is named for inside the block, for one who looks at others than the taps."""
        if self._folding:
            self._folding.undo()
        try:
            yield
        finally:
            if self._folding:
                self._folding.fold()

    def _probed(self, inputs: Tensor, data_samples: Sequence[Any] | None) -> Features:
        with self.recorder.probing(len(inputs)) as features, self._explained(inputs, data_samples):
            self._forward(inputs, data_samples)
        return _differentiable(features)

    @contextmanager
    def _explained(self, inputs: Tensor, data_samples: Sequence[Any] | None) -> Iterator[None]:
        """Turn an error of the network inside the block into one that names the size of its images."""
        height, width = self.input_size(inputs)
        if (patch := _patch_of(self.model)) and (height % patch[0] or width % patch[1]):
            near = tuple(max(1, round(x / y)) * y for x, y in zip((height, width), patch, strict=True))
            raise UserError(
                f'the teacher has patches of {patch[0]} x {patch[1]} pixels, but gets images of {height} x {width}: '
                f"give size=(height, width) in the teacher's config dict, as size={near}"
            )
        # Of another library's network, any error is about what it gets.
        known = (AssertionError, RuntimeError) if self._takes is None else Exception
        try:
            yield
        except (UserError, torch.OutOfMemoryError):
            raise
        except AttributeError as error:
            if not data_samples or type(data_samples[0]).__name__ not in str(error):
                raise
            raise UserError(
                f'the teacher, {type(self.model).__name__}, reads what the data samples of the student, '
                f'{type(data_samples[0]).__name__}s, do not have ({error}): take a teacher without that, or its '
                'backbone alone'
            ) from error
        except known as error:
            reason = ' '.join(str(error).split())
            raise UserError(
                f'the teacher, {type(self.model).__name__}, does not run on images of {height} x {width} pixels '
                f'({type(error).__name__}: {reason}): if it takes another size, give size=(height, width) in its '
                'config dict'
            ) from error

    @torch.no_grad()
    def __call__(self, inputs: Tensor, data_samples: Sequence[Any] | None) -> Features:
        """Return the features at the taps for a batch that the student's preprocessor has normalised."""
        with torch.autocast(inputs.device.type, torch.bfloat16) if self._bf16 else nullcontext():
            return (
                self._run(inputs, data_samples)
                if self._cache is None
                else self._from(self._cache, inputs, data_samples)
            )

    def _from(self, cache: FeatureCache, inputs: Tensor, data_samples: Sequence[Any] | None) -> Features:
        """Return the features of a batch from the cache, after running the network on the images that it lacks."""
        sizes = self._pools.get(tuple(inputs.shape[1:]), {})
        kind, keys = cache.keys(inputs, data_samples, self.origins.of(inputs), str(sizes) if sizes else '')
        if (features := cache.get(kind, keys, inputs.device)) is not None:
            return features
        missing = cache.missing(keys)
        if 0 < len(missing) < len(keys):
            samples = None if data_samples is None else [data_samples[i] for i in missing]
            cache.put(kind, [keys[i] for i in missing], _pooled(self._run(inputs[missing], samples), sizes))
            if (features := cache.get(kind, keys, inputs.device)) is not None:
                return features
        features = _pooled(self._run(inputs, data_samples), sizes)
        cache.put(kind, keys, features)
        return features

    def _run(self, inputs: Tensor, data_samples: Sequence[Any] | None) -> Features:
        layout = torch.channels_last if self._bf16 and inputs.dim() == 4 else torch.preserve_format
        return self.features(inputs.to(memory_format=layout), data_samples)

    def features(self, inputs: Tensor, data_samples: Sequence[Any] | None) -> Features:
        """Return the features at the taps, never from the cache, and differentiable in the inputs."""
        size = self.input_size(inputs)
        known = nullcontext() if size in self._sizes else self._explained(inputs, data_samples)
        with self.recorder.recording(stop=True) as features, known:
            self._forward(inputs, data_samples)
        self._sizes.add(size)
        return _differentiable(features)

    def _forward(self, inputs: Tensor, data_samples: Sequence[Any] | None) -> None:
        images = self._convert(inputs, data_samples)
        if self._size and images.shape[-2:] != self._size:
            images = interpolate(images, self._size, mode='bilinear', antialias=True)
        if self._takes is None:
            self.model(images, data_samples, mode='tensor')
        else:
            name, options = self._takes
            self.model(*([] if name else [images]), **({name: images} if name else {}), **options)


def _differentiable(features: Features) -> Features:
    """Return the features, those of ``torch.inference_mode`` copied: a loss could not keep them for its gradient."""
    return {tap: [x.clone() if x.is_inference() else x for x in levels] for tap, levels in features.items()}


def _pooled(features: Features, sizes: Mapping[str, Size]) -> Features:
    """Return the features, with the maps of some taps average-pooled to these sizes."""
    return {
        tap: [resized(as_float(x), sizes[tap]).to(x.dtype) for x in levels] if tap in sizes else levels
        for tap, levels in features.items()
    }


def _equal(features: Features, others: Features, tolerance: float = 1e-5) -> bool:
    """Return whether features differ by rounding at most: by this part of the largest."""
    x, y = ([level for tap in features for level in both[tap]] for both in (features, others))
    return [a.shape for a in x] == [b.shape for b in y] and all(map(partial(_near, tolerance), x, y))


def _near(tolerance: float, x: Tensor, y: Tensor) -> bool:
    if not x.is_floating_point():
        return torch.equal(x, y)
    known = x.isfinite()
    if not torch.equal(known, y.isfinite()):
        return False
    return not known.any() or bool((x - y)[known].abs().max() <= tolerance * x[known].abs().max())


def _arguments_of(model: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """Return how a network of another library takes its images, or None for one of OpenMMLab's."""
    parameters = inspect.signature(model.forward).parameters
    if isinstance(model, BaseModel) or parameters.keys() >= {'data_samples', 'mode'}:
        return None
    if 'pixel_values' not in parameters:
        return '', {}
    # Else transformers' networks take images of one size alone.
    return 'pixel_values', {'interpolate_pos_encoding': True} if 'interpolate_pos_encoding' in parameters else {}


def _patch_of(model: nn.Module) -> tuple[int, int] | None:
    """Return the patch size of a vision transformer that neither pads its images nor merges small patches."""
    for name, module in model.named_modules():
        if (
            isinstance(module, nn.Conv2d)
            and module.in_channels == 3
            and module.stride == module.kernel_size > (4, 4)
            and module.padding in ((0, 0), 'valid')
        ):
            owner = model.get_submodule(name.rpartition('.')[0])
            pads = getattr(owner, 'adaptive_padding', None) is not None or getattr(owner, 'dynamic_img_pad', False)
            return None if pads else (module.kernel_size[0], module.kernel_size[1])
    return None
