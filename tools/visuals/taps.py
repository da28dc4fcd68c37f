"""The modules of networks: which taps they offer, and which losses fit them."""

import argparse
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from itertools import pairwise
from math import ceil, inf, log2
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from rich.console import Console
from rich.table import Table
from torch import nn

from kd_plugins.config import load_config, walk
from kd_plugins.distillation.layout import Layout, Tokens, layout_of
from kd_plugins.distillation.recorder import tensors_in
from kd_plugins.distillation.sources import build_network, build_teacher, source_and_options
from kd_plugins.distillation.teacher import Teacher
from kd_plugins.errors import UserError
from kd_plugins.losses import AdversarialLoss, DistillationLoss
from kd_plugins.registry import MODELS, check_arguments, type_name
from kd_plugins.utils.files import written_whole
from kd_plugins.utils.names import nearest

BATCH = 2  # images; with one, a shape would not say which axis is the batch
DEPTH = 3
MOST = 4  # strides for which terms are proposed, the largest ones
CLOSE = 0.5  # strides whose log2 differs by less make a pair, as those of patches of 14 pixels and of stage 16
# What the features declared by a loss accept; a loss of 'any' features accepts all of them.
ACCEPTED = {
    'maps': {'maps', 'tokens of a grid'},
    'positions': {'maps', 'tokens of a grid', 'tokens', 'vectors'},
    'logits': {'vectors'},
    'embeddings': {'maps', 'tokens of a grid', 'tokens', 'vectors', 'one for each image'},
    'heads': set(),
}


@dataclass
class Tap:
    """A module of a network, and what it returned in one pass.

    Attributes:
        name: Its name, by which a term taps it; '' is a teacher itself.
        class_: Name of its class.
        linear: Whether it is a linear layer, as one that returns logits.
        runs: How often it ran.
        first_run: How many runs of modules ended before its first one.
        shapes: Shapes of the tensors that it returned, the levels, in order.
        maps: Shape (B, C, H, W) that each level has as a map; None where it is none.
    """

    name: str
    class_: str
    linear: bool
    runs: int = 0
    first_run: int = 0
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    maps: list[tuple[int, ...] | None] = field(default_factory=list)

    @property
    def depth(self) -> int:
        """Number of names that its name consists of."""
        return self.name.count('.') + 1

    @property
    def feature(self) -> str:
        """What it returns, in words; '' where it returned no tensor."""
        kinds = {kind_of(*level) for level in zip(self.shapes, self.maps, strict=True)}
        return kinds.pop() if len(kinds) == 1 else 'several kinds' if kinds else ''

    def strides(self, size: tuple[int, int]) -> list[float]:
        """Return the stride of each level to images of this size; [] where a level is no map."""
        return [stride_of(x[2:], size) for x in self.maps if x is not None] if None not in self.maps else []

    def losses(self) -> list[str]:
        """Return the registered losses that fit it."""
        return [
            name
            for name, loss in known_losses().items()
            if self.feature and (loss.features == 'any' or self.feature in ACCEPTED[loss.features])
        ]


@dataclass
class Network:
    """A network and its modules, in the order of their definition.

    Attributes:
        name: 'student', 'teacher', 'teacher 1' or 'network'.
        class_: Name of its class.
        taps: Its modules.
        failure: How the pass ended, where it did not reach the end; else ''.
        size: Height and width of the images that it got.
        terms: Names of the config's terms, by tap.
    """

    name: str
    class_: str
    taps: list[Tap]
    failure: str
    size: tuple[int, int]
    terms: dict[str, str]


def map_of(shape: tuple[int, ...], layout: Layout, size: tuple[int, int]) -> tuple[int, ...] | None:
    """Return the shape that a feature has as a map, where it is one of several positions for each image."""
    if not shape or shape[0] != BATCH:
        return None
    try:
        found = tuple(layout.as_map(torch.empty(shape, device='meta'), size).shape)
    except ValueError:  # tokens that fit no grid
        return None
    return found if len(found) == 4 and found[2:] != (1, 1) else None


def kind_of(shape: tuple[int, ...], as_map: tuple[int, ...] | None) -> str:
    """Return what a tensor is to a loss; maps of a single position count as vectors."""
    if not shape or shape[0] != BATCH:
        return 'not by image'
    if as_map is not None:
        return 'maps' if len(shape) == 4 else 'tokens of a grid'
    if len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1)):
        return 'vectors'
    return 'tokens' if len(shape) == 3 else 'one for each image'


def stride_of(maps: Sequence[int], size: Sequence[int]) -> float:
    """Return the whole stride, a power of two if possible, that makes maps of this size of the input; else a ratio."""
    ratio = (size[0] / maps[0] * size[1] / maps[1]) ** 0.5
    for stride in (2 ** round(log2(ratio)), int(ratio), ceil(ratio)):
        # Layers round up or down, and those of a pyramid several times.
        if stride >= 1 and all(abs(total / stride - x) < 1 for x, total in zip(maps, size, strict=True)):
            return stride
    return round(ratio, 2)


def known_losses() -> dict[str, type[DistillationLoss]]:
    """Return the registered losses by name, a config's own included."""
    return {
        name: class_
        for name, class_ in sorted(MODELS.module_dict.items())
        if isinstance(class_, type) and issubclass(class_, DistillationLoss)
    }


def trace(network: nn.Module, run: Callable[[], object], side: str, size: tuple[int, int]) -> tuple[list[Tap], str]:
    """Return the modules of a network as a pass runs them, and how the pass failed, if it did.

    Args:
        network: The network.
        run: Runs it.
        side: 'student', or 'teacher', whose own output is a tap, too.
        size: Height and width of the images that it gets.

    Raises:
        UserError: No module has run.
    """
    modules = dict(network.named_modules())
    taps = [
        Tap(name, type(x).__name__, isinstance(x, nn.Linear))
        for name, x in modules.items()
        if name or side == 'teacher'
    ]
    ended = 0

    def note(tap: Tap, module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal ended
        tap.first_run = tap.first_run if tap.runs else ended
        ended += 1
        tap.runs += 1
        tap.shapes += [tuple(x.shape) for x in tensors_in(output)]

    handles = [modules[tap.name].register_forward_hook(partial(note, tap)) for tap in taps]
    failure = ''
    try:
        with torch.no_grad():
            run()
    except Exception as error:  # a head may need annotations, which random images have not
        failure = str(error) if isinstance(error, UserError) else f'{type(error).__name__}: {error}'
        if not ended:
            raise UserError(
                f'{type(network).__name__}: no module runs on random images: {failure}; --input C H W gives others, as '
                '1 28 28 gray ones'
            ) from error
    finally:
        for handle in handles:
            handle.remove()
    for tap in taps:
        if tap.shapes:
            layout = layout_of(side, network, tap.name, Tokens())
            tap.maps = [map_of(shape, layout, size) for shape in tap.shapes]
    return taps, failure


# ---- the networks of a config ----------------------------------------------------------------------------------------


def parts_of(config: Config) -> tuple[dict[str, Any] | None, list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the config dicts of a config's student, or only network, of its teachers, and of its terms."""
    model = config.get('model')
    hooks = [x for x in config.get('custom_hooks') or [] if type_name(x) == 'DistillationHook']
    distillation = next(iter(hooks), model if model and type_name(model) == 'Distiller' else config)
    teachers, terms = distillation.get('teacher') or [], distillation.get('terms') or []
    return model, [*([teachers] if isinstance(teachers, Mapping) else teachers)], [*terms]


def size_of(step: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the height and width that a transform resizes or crops to, where its config dict states it."""
    for key in ('crop_size', 'size', 'scale', 'scales'):
        value = step.get(key)
        while isinstance(value, (list, tuple)) and value and isinstance(value[-1], (list, tuple)):
            value = value[-1]  # the largest of several
        sides = [value, value] if isinstance(value, int) else value
        if isinstance(sides, (list, tuple)) and len(sides) == 2 and all(isinstance(x, int) and x > 0 for x in sides):
            return (sides[0], sides[1]) if key in ('crop_size', 'size') else (sides[1], sides[0])
    return None


def input_of(config: Config) -> tuple[tuple[int, int, int], str]:
    """Return the shape of the images that a config's networks take, and where it is from."""
    shape = (config.get('model') or {}).get('input_shape')
    if shape:
        return tuple(shape), "the Distiller's input_shape"
    for part in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        steps = [step for _, step in walk(config.get(part)) if isinstance(step, Mapping) and 'type' in step]
        if sizes := [size for step in steps if (size := size_of(step))]:
            return (3, *sizes[-1]), f'the pipeline of {part}'
    if config.get('train_dataloader'):
        try:
            loader = config.train_dataloader | dict(num_workers=0, persistent_workers=False)
            image = Runner.build_dataloader(loader, seed=0).dataset[0]['inputs']
            return tuple(image.shape[-3:]), 'the first training image'
        except Exception:  # the data are not there, or of another kind
            pass
    return (3, 224, 224), 'assumed: --input gives another size'


def padded(shape: Sequence[int], network: nn.Module) -> tuple[int, int, int]:
    """Return the shape of images after a network's preprocessor has padded them."""
    divisor = getattr(getattr(network, 'data_preprocessor', None), 'pad_size_divisor', 1)
    channels, *sides = shape
    height, width = (-(-side // divisor) * divisor for side in sides)
    return channels, height, width


def networks_of(
    config: Config, shape: tuple[int, int, int], weights: bool
) -> tuple[list[Network], tuple[int, int, int]]:
    """Build a config's networks, run each on random images, and return them with the shape of the images.

    Args:
        config: A run's config, or one of a teacher alone.
        shape: Shape (C, H, W) of the images.
        weights: Whether to load the teachers' weights.

    Raises:
        UserError: The config has no network, or one cannot be built or run.
    """
    model, teachers, terms = parts_of(config)
    if not model and not teachers:
        raise UserError(f"{config.filename} has neither 'model' nor 'teacher', whose modules could be listed")

    def tapped(side: str, index: int | None = None) -> dict[str, str]:
        found: dict[str, str] = {}
        for number, term in enumerate(terms):
            taps = term.get(side) or ()
            for tap in [taps] if isinstance(taps, str) else taps:
                if index is None or index in (term.get('teachers') or [index]):
                    found[tap] = ', '.join(filter(None, [found.get(tap), term.get('name', str(number))]))
        return found

    networks = []
    if model:
        student = build_network({'data_preprocessor': config.get('data_preprocessor')} | dict(model))
        student.eval()  # some networks of mmpretrain return None
        shape = padded(shape, student)
    images = torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(0))
    sides = shape[1:]
    meta = dict(img_shape=sides, ori_shape=sides, pad_shape=sides, batch_input_shape=sides, scale_factor=(1.0, 1.0))
    samples = [BaseDataElement(metainfo=meta) for _ in images]
    if model and teachers:
        found = trace(student, partial(student, images, samples, mode='tensor'), 'student', sides)
        networks.append(Network('student', type(student).__name__, *found, sides, tapped('student')))
    elif model:  # of any kind that a teacher may be
        found = trace(student, partial(Teacher(student, ['']).probe, images, samples, fold=False), 'teacher', sides)
        networks.append(Network('network', type(student).__name__, *found, sides, {}))
    for index, options in enumerate(teachers):
        name = f'teacher {index}' if len(teachers) > 1 else 'teacher'
        teacher = build(name, options, weights)
        own = teacher.input_size(images)
        found = trace(teacher.model, partial(teacher.probe, images, samples, fold=False), 'teacher', own)
        networks.append(Network(name, type(teacher.model).__name__, *found, own, tapped('teacher', index)))
    return networks, shape


def build(name: str, options: Mapping[str, Any], weights: bool) -> Teacher:
    """Build a teacher from its config dict, with random weights unless told otherwise."""
    if not isinstance(options, Mapping):
        raise UserError(f'the {name} must be a config dict, as dict(config=..., checkpoint=...), got {options!r}')
    source, _ = source_and_options(options)
    check_arguments(f'the {name}', build_teacher, source)
    if not weights and source.get('config') is not None:
        network = build_network(source['config'], source.get('data_preprocessor'))
    elif not weights:
        random: dict[str, Any] = {} if source.get('build') is not None else dict(weights=None)
        network = build_teacher(**source | dict(checkpoint=None) | random)
    else:
        network = build_teacher(**source)
    # The whole network as a tap: a pass that does not reach its end then says why.
    return Teacher(network, [''], size=options.get('size'))  # normalisation changes no shape


# ---- what is printed -------------------------------------------------------------------------------------------------


def shown(tap: Tap, depth: int | None, pattern: str | None, terms: Iterable[str]) -> bool:
    """Return whether a module has a row in the table."""
    if pattern is not None:
        pattern = pattern if any(x in pattern for x in '*?[') else f'*{pattern}*'
        return fnmatchcase(tap.name, pattern) and tap.depth <= (depth or tap.depth)
    return tap.depth <= (depth or DEPTH) or tap.name in terms


def shapes_in_words(shapes: Sequence[tuple[int, ...]]) -> str:
    """Return the shapes of a tap's levels, a line for each change of shape; B is the batch."""
    lines: list[list[Any]] = []
    for shape in shapes:
        axes = ['B' if not axis and size == BATCH else str(size) for axis, size in enumerate(shape)]
        text = f'({", ".join(axes)})'
        if lines and lines[-1][0] == text:
            lines[-1][1] += 1
        else:
            lines.append([text, 1])
    return '\n'.join(text if count == 1 else f'{count} x {text}' for text, count in lines)


def feature_in_words(tap: Tap) -> str:
    """Return what a tap returns, with the grid of tokens, as '1 + 16 x 16 tokens'."""
    if tap.feature == 'maps' and tap.shapes != tap.maps:
        return 'maps, channels last'
    if tap.feature != 'tokens of a grid':
        return tap.feature
    grids = [(shape[1], *found[2:]) for shape, found in zip(tap.shapes, tap.maps, strict=True) if found]
    words = [f'{f"{n - h * w} + " if n > h * w else ""}{h} x {w} tokens' for n, h, w in grids]
    return '\n'.join(dict.fromkeys(words))


def table_of(network: Network, rows: Iterable[Tap], size: tuple[int, int], title: str) -> Table:
    """Return the table of a network's modules."""
    table = Table('module', 'class', 'levels', 'output', 'stride', 'feature', title=title, title_justify='left')
    if network.terms:
        table.add_column('terms')
    for tap in rows:
        if tap.shapes:
            levels = str(len(tap.shapes)) + (f' in {tap.runs} runs' if tap.runs > 1 else '')
            strides = ' '.join(f'{x:g}' for x in tap.strides(size))
            cells = [levels, shapes_in_words(tap.shapes), strides, feature_in_words(tap)]
        else:
            cells = ['', 'no tensor' if tap.runs else 'does not run', '', '']
        terms = [network.terms.get(tap.name, '')] if network.terms else []
        table.add_row(tap.name or "''", tap.class_, *cells, *terms, style=None if tap.shapes else 'dim')
    return table


def loss_lines() -> Iterator[str]:
    """Yield a line for each kind of feature with the losses that take it, and what these need besides."""
    notes = {}
    for name, loss in known_losses().items():
        needs = ['two taps'] * loss.takes_pairs + ['logits of the same classes'] * (loss.features == 'logits')
        needs += ['labels'] * (loss.needs_labels or issubclass(loss, AdversarialLoss))
        needs += ['indices of the images'] * loss.needs_indices
        notes[name] = f'{name} ({", ".join(needs)})' if needs else name
    as_map = (BATCH, 1, 2, 2)
    examples = {
        'maps and tokens of a grid': (as_map, as_map),
        'tokens': ((BATCH, 5, 1), None),
        'vectors': ((BATCH, 1), None),
    }
    for kind, (shape, found) in examples.items():
        yield f'{kind}: {", ".join(notes[x] for x in Tap("", "", False, shapes=[shape], maps=[found]).losses())}'


def taps_by_stride(network: Network, size: tuple[int, int]) -> dict[tuple[float, ...], Tap]:
    """Return a module for each stride, or strides of a pyramid: the last one of those with the shortest names."""
    found: dict[tuple[float, ...], list[Tap]] = {}
    for tap in network.taps:
        strides = tuple(tap.strides(size))
        # The levels of a backbone are its stages. What runs at each level is part of a head, which the task shapes.
        once = tap.runs == 1 and all(a < b for a, b in pairwise(strides))
        # Where axes may be those of heads; pooled to a size of their own; a segmentor's heads, which the task shapes.
        others = ('attn', 'attention', 'psp_modules', 'ppm', 'decode_head', 'auxiliary_head')
        once &= not any(word in tap.name for word in others)
        if strides and max(strides) > 1 and once and (len(strides) == 1 or tap.name not in ('', 'backbone')):
            found.setdefault(strides, []).append(tap)
    return {
        strides: min(taps, key=lambda x: (x.name in ('', 'backbone'), x.depth, -x.first_run))
        for strides, taps in found.items()
    }


def pairs_of(student: Network, teacher: Network, size: tuple[int, int]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield terms of taps of equal stride, or of strides that are close, and for each what its features are."""
    own, others = taps_by_stride(student, size), taps_by_stride(teacher, size)
    pyramids = {}  # the strides of two pyramids that share some, and which they share
    for strides in (x for x in own if len(x) > 1):
        match = max((x for x in others if len(x) > 1), key=lambda x: len({*x} & {*strides}), default=())
        if len(shared := [x for x in strides if x in match]) > 1:
            pyramids[strides, match] = shared
    inside = tuple(f'{own[strides].name}.' for strides, _ in pyramids)
    single = {strides[0]: tap for strides, tap in own.items() if len(strides) == 1 and not tap.name.startswith(inside)}
    pairs: list[tuple[str, Tap, Tap, str, dict[str, list[int]]]] = []
    for stride in sorted(single):
        near = min((x[0] for x in others if len(x) == 1), key=lambda x: abs(log2(x / stride)), default=inf)
        if abs(log2(near / stride)) < CLOSE:
            words = f'stride {stride:g}' if near == stride else f'strides {stride:g} and {near:g}'
            pairs.append((f'nst_{stride:g}', single[stride], others[near,], words, {}))
    pairs = pairs[-MOST:]
    for (strides, match), shared in pyramids.items():
        name = own[strides].name.rpartition('.')[2]
        words = f'strides {", ".join(f"{x:g}" for x in shared)}'
        levels = {
            f'{side}_levels': [found.index(x) for x in shared]
            for side, found in (('student', strides), ('teacher', match))
            if len(found) > len(shared)
        }
        pairs.append((f'nst_{name}', own[strides], others[match], words, levels))
    for name, tap, other, words, levels in pairs:
        loss = dict(type='kd_plugins.NSTLoss')
        term = dict(name=name, loss=loss, student=tap.name, teacher=other.name, **levels, weight=50.0)
        channels = ' and '.join(str(found[1]) for x in (tap, other) for found in x.maps[:1] if found)
        yield term, f'{words}; {channels} channels'
    logits, targets = logits_of(student), logits_of(teacher)
    if logits and targets and logits.shapes == targets.shapes:
        kd: dict[str, Any] = dict(type='kd_plugins.KDLoss', tau=4.0)
        term = dict(name='kd', loss=kd, student=logits.name, teacher=targets.name, weight=1.0)
        yield term, f'{logits.shapes[0][-1]} logits, if of the same classes'
    scores, targets = scores_of(student), scores_of(teacher)
    if scores and targets and scores.shapes[0][1] == targets.shapes[0][1]:
        cwd: dict[str, Any] = dict(type='kd_plugins.CWDLoss', tau=4.0)
        term = dict(name='cwd', loss=cwd, student=scores.name, teacher=targets.name, weight=3.0)
        yield term, f'{scores.shapes[0][1]} scores of each pixel, if of the same classes'


def scores_of(network: Network) -> Tap | None:
    """Return the layer that scores the classes of pixels in one of mmseg's heads, of several heads the last one's."""
    found = [x for x in network.taps if x.name.endswith('.conv_seg') and x.feature == 'maps']
    return max(found, key=lambda x: x.first_run, default=None)


def logits_of(network: Network) -> Tap | None:
    """Return the last linear layer, or, of several that return as many logits, the module around them that joins them.

    DeiT, LeViT and EfficientFormer predict by the mean of two, for the class token and for the distillation token.
    """
    linear = [x for x in network.taps if x.linear and x.feature == 'vectors']
    last = max(linear, key=lambda x: x.first_run, default=None)
    alike = [x for x in linear if last and x.shapes == last.shapes]

    def joins(tap: Tap) -> bool:
        inside = f'{tap.name}.' if tap.name else ''
        return tap.shapes == alike[0].shapes and all(x.name.startswith(inside) and x is not tap for x in alike)

    joining = [tap for tap in network.taps if len(alike) > 1 and joins(tap)]
    return max(joining, key=lambda x: len(x.name), default=last)


def as_code(term: Mapping[str, Any]) -> str:
    """Return a config dict as a config writes it."""
    return f'dict({", ".join(f"{k}={as_code(v) if isinstance(v, Mapping) else repr(v)}" for k, v in term.items())})'


def taps(args: argparse.Namespace) -> None:
    """List the modules of student and teacher with their outputs, the losses that fit, and pairs to distil."""
    if args.depth is not None and args.depth < 1:
        raise UserError(f'--depth: expected at least 1, got {args.depth}')
    if args.input and min(args.input) < 1:
        raise UserError(f'--input {" ".join(map(str, args.input))}: expected channels, height and width, as 3 224 224')
    if not args.weights:  # that they are random needs no warning here
        MMLogger.get_current_instance().setLevel(logging.ERROR)
    config = load_config(args.config)
    package = args.config.partition('::')[0] if '::' in args.config else 'mmpretrain'  # headless ones state no scope
    init_default_scope(config.get('default_scope') or package)
    shape, origin = (tuple(args.input), '--input') if args.input else input_of(config)
    networks, shape = networks_of(config, shape, args.weights)
    size = shape[1:]
    console = Console(width=max(160, Console().width), soft_wrap=True)
    everything = [tap for network in networks for tap in network.taps]
    if args.filter and not any(shown(tap, args.depth, args.filter, ()) for tap in everything):
        raise UserError(
            f'--filter {args.filter}: no module has such a name; {nearest(args.filter, [x.name for x in everything])}'
        )
    for network in networks:
        rows = [tap for tap in network.taps if shown(tap, args.depth, args.filter, network.terms)]
        hidden = len(network.taps) - len(rows)
        about = origin if network.size == size else f'resized from {size[0]} x {size[1]}'
        about = f'{shape[0]} x {network.size[0]} x {network.size[1]} ({about})'
        console.print(table_of(network, rows, size, f'{network.name}: {network.class_}, input {about}'))
        if hidden:
            print(f'{hidden} more modules, deeper or filtered out: --depth and --filter choose')
        if network.failure:
            print(f'the pass on random images ended early ({network.failure}): what comes later is shown as not run')
        print()
    print(*loss_lines(), sep='\n')
    pairs = []
    for index, teacher in enumerate(networks[1:]):
        for term, note in pairs_of(networks[0], teacher, size):
            several = dict(name=f'{term["name"]}_{index}', teachers=[index]) if len(networks) > 2 else {}
            pairs.append((term | several, note))
    if pairs and networks[0].name == 'student':
        print('\nterms of taps with the same stride:')
        for term, note in pairs:
            print(f'    {as_code(term)},  # {note}')
    if args.json:
        write_json(args.json, networks, shape, pairs)


def write_json(path: Path, networks: Sequence[Network], shape: tuple[int, int, int], pairs: Sequence[Any]) -> None:
    """Write everything, whatever the table shows."""
    content = dict(
        networks=[
            dict(
                name=network.name,
                type=network.class_,
                failure=network.failure,
                input=[BATCH, shape[0], *network.size],
                modules=[
                    dict(
                        name=tap.name,
                        type=tap.class_,
                        runs=tap.runs,
                        outputs=tap.shapes,
                        maps=tap.maps,
                        strides=tap.strides(shape[1:]),
                        feature=tap.feature,
                        losses=tap.losses(),
                    )
                    for tap in network.taps
                ],
            )
            for network in networks
        ],
        terms=[term for term, _ in pairs],
    )
    with written_whole(path) as partial_file:
        Path(partial_file).write_text(json.dumps(content, indent=1) + '\n')
