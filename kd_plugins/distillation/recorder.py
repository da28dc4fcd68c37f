"""Named taps: the outputs of a model's submodules during one forward pass."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from kd_plugins.errors import UserError
from kd_plugins.utils.names import nearest

Features = dict[str, list[Tensor]]


class _Complete(BaseException):
    """Ends a forward pass after the last tap: no Exception, which a network itself may catch."""


@contextmanager
def _restored(model: nn.Module | None) -> Iterator[None]:
    """Put back the ``forward`` of each module behind the block.

    Networks of transformers that return the states of all layers replace those of the layers in each pass, and leave
    them so where the pass does not end by itself.
    """
    own = [] if model is None else [(module, vars(module).get('forward')) for module in model.modules()]
    try:
        yield
    finally:
        for module, forward in own:
            if vars(module).get('forward') is not forward:
                if forward is None:
                    del module.forward
                else:
                    module.forward = forward


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of a module's output, also those inside containers."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from tensors_in(value)


class Recorder:
    """Records the outputs of chosen submodules.

    A tap is a dotted module name, as in ``model.named_modules()``. Its feature is a list of tensors, the tap's
    *levels*: one for a plain layer, several for a module that returns a tuple (an FPN) or runs several times in a pass
    (a head shared by pyramid levels), in the order of the calls.

    Hooks exist only inside :meth:`recording`, so that a model which is copied, saved or compiled between two passes
    has none.

    Args:
        model: Network whose submodules are recorded.
        taps: Names of submodules.
        whole: Whether ``''`` is a tap, too: the output of the network itself.
        role: What the network is, for messages, as ``'student'``.

    Raises:
        UserError: A tap is not a submodule of the model; the message lists the nearest names.
    """

    def __init__(self, model: nn.Module, taps: Iterable[str], whole: bool = False, role: str = '') -> None:
        modules = dict(model.named_modules(remove_duplicate=False))  # a module may have several names
        self.model = model
        self._taps = list(dict.fromkeys(taps))
        for tap in self._taps:
            if tap not in modules or not (tap or whole):
                output = "; '' taps its output" if whole else ''
                who = f'the {role}, {type(model).__name__},' if role else type(model).__name__
                raise UserError(
                    f"{who} has no module '{tap}' to tap; {nearest(tap, modules)}{output}; visualize.py taps lists all"
                )
        # Else a graph of the same class of network, compiled while a module had no hook, is taken where it has one.
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        self._cloned: set[str] = set()
        self._runs: Counter[str] = Counter()  # of each tap in probing
        self._probed = self._constant = False
        self._levels: dict[str, int] = {}  # of each tap in probing
        self._whole: list[str] = []  # taps that had a feature of each image there
        self._failure: str | None = None  # of layers behind the taps, there

    @contextmanager
    def _hooked(self, hook: Callable[[str, list[Tensor]], None]) -> Iterator[None]:
        """Call ``hook(tap, tensors)`` after every run of a tapped module inside the block."""
        handles = [  # looked up each time: mmengine may have replaced a module by a SyncBatchNorm
            self.model.get_submodule(tap).register_forward_hook(
                # A tensor that is returned twice, as by mmdet's Swin, is one level.
                lambda module, args, output, tap=tap: hook(tap, list({id(x): x for x in tensors_in(output)}.values()))
            )
            for tap in self._taps
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def recording(self, stop: bool = False) -> Iterator[Features]:
        """Record every forward pass inside the block into the dictionary that is yielded.

        Args:
            stop: Whether to end the pass as soon as every tap has run as often as in :meth:`probing`, without the later
                layers; only where that does not depend on the number of images.

        Raises:
            UserError: A later layer overwrites an output in place in training, but did not in :meth:`probing` (a
                dropout). Inside a compiled graph that is not seen.
        """
        features: Features = {tap: [] for tap in self._taps}
        versions: dict[str, list[int | None]] = {tap: [] for tap in self._taps}
        watched = self._probed and torch.is_grad_enabled()  # tensors of inference_mode have no version
        missing = +self._runs

        def record(tap: str, tensors: list[Tensor]) -> None:
            features[tap] += [x.clone() for x in tensors] if tap in self._cloned else tensors
            if watched:  # inside a compiled graph, versions are not those of the tensors that it returns
                inside = torch.compiler.is_compiling()
                versions[tap] += [None if inside else x._version for x in features[tap][len(versions[tap]) :]]
            missing.subtract([tap])
            if stop and self._constant and not +missing:
                raise _Complete

        with self._hooked(record), _restored(self.model if stop else None), suppress(_Complete):
            yield features
        if watched:
            for tap in self._taps:
                if any(v not in (None, x._version) for v, x in zip(versions[tap], features[tap], strict=True)):
                    raise UserError(
                        f"the output of '{tap}' is overwritten in training by a later layer (a dropout "
                        'with inplace=True): tap that layer instead, or set its inplace to False'
                    )

    @contextmanager
    def probing(self, images: int | None = None) -> Iterator[Features]:
        """Record one pass like :meth:`recording`, and find out how each tap runs.

        An output that the next layer overwrites in place (a BatchNorm before ``ReLU(inplace=True)``) would be recorded
        with the values of that layer; this pass records copies, and later ones a copy of it.

        The pass may fail after every tap has run: random images have no annotations, which a RoI head may need.

        Args:
            images: Number of images in the pass. A tap that runs several times, but not on all of them at once, may run
                once for each image, and more often in a larger batch. None where no tap does so.
        """
        calls: Counter[str] = Counter()
        outputs: list[tuple[str, Tensor, int]] = []  # with their versions
        parts = set()

        def count(tap: str, tensors: list[Tensor]) -> None:
            calls[tap] += 1
            if images is not None and any(x.shape[:1] != (images,) for x in tensors):
                parts.add(tap)
            outputs.extend((tap, x, x._version) for x in tensors)

        failure: str | None = None
        self._cloned = set(self._taps)  # for this pass, which shows for which it is needed
        with self.recording() as features, self._hooked(count):
            try:
                yield features
            except Exception as error:
                if any(not calls[tap] for tap in self._taps):
                    raise
                # Not the error, which would keep all activations alive by its traceback.
                failure = f'{type(error).__name__}: {" ".join(str(error).split())}'
        self._runs, self._probed, self._failure = calls, True, failure
        self._levels = {tap: len(features[tap]) for tap in self._taps}
        self._constant = all(calls[tap] == 1 for tap in parts)
        self._whole = [] if images is None else [tap for tap in self._taps if tap not in parts]
        self._cloned = {tap for tap, x, version in outputs if x._version != version}

    def irregularities(self, features: Features, images: int) -> Iterator[str]:
        """Yield what was odd about the passes, where a term does not take the features of the last one.

        Args:
            features: What the last pass has recorded.
            images: Number of its images.
        """
        if self._failure is not None:
            yield f'in the dry run {type(self.model).__name__} stopped behind its taps ({self._failure})'
        for tap, count in self._levels.items():
            if len(features.get(tap, ())) not in (0, count):
                yield f"'{tap}' yields {len(features[tap])} level(s) in this pass, and {count} in the dry run"
        for tap in self._whole:
            rows = [len(x) for x in features.get(tap, ()) if len(x) > images]
            if rows:
                yield (
                    f"'{tap}' yields {max(rows)} features for {images} images in this pass, as of several branches, "
                    'and one for each in the dry run: tap a module before these branches'
                )
