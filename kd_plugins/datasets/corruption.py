"""Training data made worse on purpose: wrong labels, rare classes; and a clean part held out to choose by."""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
from mmengine.dataset import BaseDataset
from numpy.typing import NDArray

from kd_plugins.errors import UserError
from kd_plugins.registry import DATASETS

Labels = Sequence[int] | NDArray[np.integer]

_DRAWS = dict(noise=2, imbalance=3, validation=4)  # streams of their own under one seed
# The options of each kind, their types and defaults (...: required).
_OPTIONS: dict[str, dict[str, tuple[type, Any]]] = dict(
    label_noise=dict(rate=(Real, ...), include_true=(bool, True), seed=(Integral, 0)),
    imbalance=dict(gamma=(Real, ...), most=(Integral, None), least=(Integral, None), seed=(Integral, 0)),
    validation=dict(size=(Integral, ...), seed=(Integral, 0), part=(str, 'train')),
)
# K^gamma stays finite, also for a million classes, and b + 1 above the rounding error.
_MIN_GAMMA, _MAX_GAMMA = 1e-6, 50
_KINDS = {Real: 'a number', Integral: 'a whole number', bool: 'True or False', str: 'a text'}


def _checked(name: str, labels: Labels, classes: int) -> np.ndarray:
    labels = np.asarray(labels, np.int64)
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise UserError(
            f'{name}: labels from {labels.min()} to {labels.max()}, but there are {classes} classes; correct the '
            "labels, or the classes in the data set's metainfo"
        )
    return labels


def noisy_labels(
    labels: Labels,
    classes: int,
    rate: float,
    include_true: bool = True,
    seed: int = 0,
) -> np.ndarray:
    """Replace each label, with a probability, by a class drawn uniformly (symmetric noise).

    Every label's draw follows from the seed and its index alone, in every process.

    Args:
        labels: (N,) integers below ``classes``.
        classes: Number of classes K, at least 2.
        rate: Probability of a draw, 0 to 1.
        include_true: Draw from all K classes, so that a fraction ``rate * (K - 1) / K`` of the labels becomes wrong
            (the mixture ``(1 - rate) I + rate 11'/K`` of [1]); else from the other K - 1, and a fraction ``rate`` does.
        seed: Seed of the draws.

    Returns:
        (N,) int64.

    Raises:
        UserError: The rate is no probability, there is no other class, or a label is none of them.

    References:
        1. hendrycks/pre-training, ``load_corrupted_ours_hierarchical.py``, ``uniform_mix_C``; so does
           NeurAI-Lab/InBiaseD, ``kd_lib/utilities/cifar10_data.py``.
    """
    if not 0 <= rate <= 1 or classes < 2 or seed < 0:
        raise UserError(
            f'label_noise: rate={rate}, seed={seed}, {classes} classes; expected a probability, a seed '
            'of at least 0, and two classes'
        )
    labels = _checked('label_noise', labels, classes)
    rng = np.random.default_rng((seed, _DRAWS['noise']))
    replaced = rng.random(len(labels)) < rate
    if include_true:
        drawn = rng.integers(classes, size=len(labels))
    else:
        drawn = (labels + rng.integers(1, classes, size=len(labels))) % classes
    return np.where(replaced, drawn, labels)


def class_sizes(classes: int, gamma: float, most: int, least: int) -> list[int]:
    """Return how many samples of each class an imbalanced set has, falling from ``most`` to ``least`` by a power law.

    n_c = round(a / (b + c^gamma)) for c = 1 to K, with b = (least K^gamma - most) / (most - least) and
    a = most (b + 1); so n_1 = most and n_K = least, and the smaller gamma, the fewer samples there are between the two.
    The authors of Sarfraz et al. (2020) make imbalanced sets like this in later code [1].

    Raises:
        UserError: Not 0 < least < most, gamma is too small or too large, or there are fewer than two classes.

    References:
        1. github.com/NeurAI-Lab/InBiaseD, ``kd_lib/utilities/cifar10_data.py``.
    """
    if classes < 2 or not _MIN_GAMMA <= gamma <= _MAX_GAMMA or not 0 < least < most:
        raise UserError(
            f'imbalance: gamma={gamma}, most={most}, least={least}, {classes} classes; expected a gamma '
            f'of {_MIN_GAMMA:g} to {_MAX_GAMMA}, 0 < least < most, and two classes'
        )
    b = (least * classes**gamma - most) / (most - least)  # may be negative; b + 1 is not
    a = most * (b + 1)
    return [round(a / (b + c**gamma)) for c in range(1, classes + 1)]


def kept_samples(
    labels: Labels,
    classes: int,
    gamma: float,
    most: int | None = None,
    least: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Return the indices of the samples that an imbalanced set keeps, in order.

    The samples that are kept of a class are drawn by the seed.

    Args:
        labels: (N,) integers below ``classes``.
        classes: Number of classes; class 0 stays the largest.
        gamma: Exponent, see :func:`class_sizes`.
        most: Samples of class 0; None: as many as the largest class has.
        least: Samples of the last class; None: a twentieth of ``most``.
        seed: Seed of the draw.

    Raises:
        UserError: A class has fewer samples than are to be kept, a label is no class, or as :func:`class_sizes`.
    """
    if seed < 0:
        raise UserError(f'imbalance: seed={seed}; expected at least 0')
    labels = _checked('imbalance', labels, classes)
    found = np.bincount(labels, minlength=classes)
    most = int(found.max()) if most is None else most
    sizes = class_sizes(classes, gamma, most, most // 20 if least is None else least)
    for c, (size, there) in enumerate(zip(sizes, found, strict=True)):
        if there < size:
            raise UserError(
                f'imbalance: class {c} is to keep {size} samples, but has {there}: give a smaller most '
                f'(it is {most}) or least'
            )
    rank = np.empty(len(labels), np.int64)  # of each sample within its class, in drawn order
    order = np.random.default_rng((seed, _DRAWS['imbalance'])).permutation(len(labels))
    for c in range(classes):
        rank[order[labels[order] == c]] = np.arange(found[c])
    return np.flatnonzero(rank < np.array(sizes)[labels])


def held_out(labels: Labels, size: int, seed: int = 0) -> np.ndarray:
    """Return the indices of a validation part, in order, drawn by the seed within each class (stratified).

    Each class contributes in proportion to its samples; what rounding down leaves goes to the largest remainders.

    Raises:
        UserError: Not 0 < size < the number of samples, or a label below 0.
    """
    labels = np.asarray(labels, np.int64)
    if len(labels) and labels.min() < 0:
        raise UserError(f'validation: a label of {labels.min()}; expected labels from 0')
    if not 0 < size < len(labels) or seed < 0:
        raise UserError(
            f'validation: size={size}, seed={seed}, {len(labels)} samples; expected a size between 0 and '
            'that, and a seed of at least 0'
        )
    found = np.bincount(labels)
    shares = found * size / len(labels)
    counts = np.floor(shares).astype(np.int64)
    counts[np.argsort(counts - shares, kind='stable')[: size - counts.sum()]] += 1
    order = np.random.default_rng((seed, _DRAWS['validation'])).permutation(len(labels))
    return np.sort(np.concatenate([order[labels[order] == c][:count] for c, count in enumerate(counts)]))


class Corruption(NamedTuple):
    """Which samples of a data set are left, and with which labels.

    Attributes:
        kept: (M,) indices of the samples that are left, in order.
        given: (M,) labels of these samples.
        options: The complete options, for ``corruption.json``; None where only a part is held out.
    """

    kept: np.ndarray
    given: np.ndarray
    options: dict[str, Any] | None


def corrupt(
    labels: Labels,
    classes: int,
    label_noise: Mapping[str, Any] | None = None,
    imbalance: Mapping[str, Any] | None = None,
    validation: Mapping[str, Any] | None = None,
) -> Corruption:
    """Hold out a validation part, then imbalance the rest, then make the labels of what is kept noisy.

    Noise is drawn for every index of the whole set and used for those kept, so that a sample gets the same label
    whatever else is left out. What is held out stays clean.

    Args:
        labels: (N,) labels of the whole training split.
        classes: Number of classes.
        label_noise: Arguments of :func:`noisy_labels`: ``dict(rate=0.4, include_true=True, seed=0)``.
        imbalance: Arguments of :func:`kept_samples`: ``dict(gamma=0.2, most=None, least=None, seed=0)``.
        validation: ``dict(size=5000, seed=0, part='train')``, or ``part='val'`` for the samples held out, see
            :func:`held_out`.

    Raises:
        UserError: An option is unknown, of another type or out of range, or noise or imbalance is requested for the
            held-out part.
    """
    given = labels = np.asarray(labels, np.int64)
    kept = np.arange(len(labels))
    if validation is not None:
        validation = complete_options('validation', validation)
        part = validation.pop('part')
        if part not in ('train', 'val') or (part == 'val' and (label_noise or imbalance)):
            raise UserError(
                f"validation: part='{part}'; expected 'train', or 'val' without label_noise and imbalance: "
                'the held-out part stays clean'
            )
        out = held_out(labels, **validation)
        kept = out if part == 'val' else np.setdiff1d(kept, out)
    options = {}
    if imbalance is not None:
        options['imbalance'] = complete_options('imbalance', imbalance)
        kept = kept[kept_samples(labels[kept], classes, **options['imbalance'])]
    if label_noise is not None:
        options['label_noise'] = complete_options('label_noise', label_noise)
        given = noisy_labels(labels, classes, **options['label_noise'])
    return Corruption(kept, given[kept], options or None)


def complete_options(name: str, options: Any) -> dict[str, Any]:
    """Return the options of ``'label_noise'``, ``'imbalance'`` or ``'validation'``, defaults included.

    Raises:
        UserError: They are no dict, or one is unknown, missing or of another type.
    """
    known = _OPTIONS[name]
    if not isinstance(options, Mapping):
        needed = next(iter(known))
        raise UserError(f'{name} is {options!r}; expected a dict of {", ".join(known)}, as {name}=dict({needed}=...)')
    if wrong := set(options) - set(known):
        raise UserError(f"{name}: no option '{min(wrong)}'; options are {', '.join(known)}")
    complete = {key: default for key, (_, default) in known.items()} | dict(options)
    for key, value in complete.items():
        kind, default = known[key]
        if value is ...:
            raise UserError(f"{name}: '{key}' is missing; options are {', '.join(known)}")
        if not (value is default or (isinstance(value, kind) and isinstance(value, bool) == (kind is bool))):
            raise UserError(f'{name}: {key} is {value!r}; expected {_KINDS[kind]}')
    return complete


def check_options(**options: Any) -> None:
    """Check options of :func:`corrupt` as far as that is possible without the data.

    Raises:
        UserError: As :func:`corrupt`.
    """
    for name, given in options.items():
        complete = complete_options(name, given)
        if name == 'label_noise':
            noisy_labels([], 2, **complete)
        elif name == 'imbalance':
            most, least = complete['most'], complete['least']
            most = most if most is not None else 20 * max(least or 1, 1)
            class_sizes(2, complete['gamma'], most, least if least is not None else most // 20)
        else:
            corrupt(np.zeros(max(complete['size'], 0) + 1), 1, validation=complete)


def report(options: Mapping[str, Any] | None, infos: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the contents of ``corruption.json``, for the samples that a data set has in the end.

    Args:
        options: ``options`` of :class:`Corruption`.
        infos: Dicts of the samples, with ``gt_label``, and, where there are options, ``true_label`` and
            ``source_idx``.
    """
    if options is None:
        return None
    labels = [int(info['true_label']) for info in infos]
    changed = [
        [int(info['source_idx']), true, int(info['gt_label'])]
        for info, true in zip(infos, labels, strict=True)
        if int(info['gt_label']) != true
    ]
    return dict(
        options,
        samples=len(infos),
        samples_per_class=np.bincount(labels).tolist(),
        changed_columns=['index in the whole split', 'true label', 'given label'],
        changed=changed,
    )


def rewrite(
    infos: Sequence[dict[str, Any]],
    classes: int,
    **options: Mapping[str, Any] | None,
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Return the dicts of the samples that :func:`corrupt` leaves, and the ``options`` to report.

    Each dict has the given ``gt_label``, and, where there are options to report, ``true_label`` and ``source_idx``, its
    index among the dicts passed in.
    """
    labels = [int(info['gt_label']) for info in infos]
    kept, given, reported = corrupt(labels, classes, **options)
    chosen = [dict(infos[i], gt_label=label) for i, label in zip(kept.tolist(), given.tolist(), strict=True)]
    if reported is not None:
        for info, i in zip(chosen, kept.tolist(), strict=True):
            info.update(true_label=labels[i], source_idx=i)
    return chosen, reported


@DATASETS.register_module(name='Corrupted')
def corrupted(
    dataset: Mapping[str, Any],
    label_noise: Mapping[str, Any] | None = None,
    imbalance: Mapping[str, Any] | None = None,
    validation: Mapping[str, Any] | None = None,
) -> BaseDataset:
    """Build a data set with an integer ``gt_label``, corrupted; see :func:`corrupt` for the options.

    Returns the data set itself, with its pipeline; its own ``indices`` apply first. It can be the ``dataset`` of
    ``kd_plugins.BatchedImages``. The classes are those that the data set names, or 0 to the largest label.

    Raises:
        UserError: The data set is a test set or no ``BaseDataset`` of mmengine, or its samples have no integer label.
    """
    data = DATASETS.build(dataset)
    name = type(data).__name__
    if not isinstance(data, BaseDataset):
        inner = "dict(type='kd_plugins.Corrupted', dataset=...)"
        inner = f'datasets=[{inner}, ...]' if name == 'ConcatDataset' else f'dataset={inner}'
        raise UserError(
            f"Corrupted: {name} is not an mmengine data set; put Corrupted inside it: dict(type='{name}', {inner})"
        )
    if data.test_mode or getattr(data, 'split', 'train') in ('test', 'val', 'valid'):
        refuse_test(name)
    data.full_init()
    if getattr(data, 'corruption', None) is not None:
        raise UserError(
            f'Corrupted: {name} is corrupted already, by its own options or another Corrupted: give all '
            'options in one place'
        )
    infos = [data.get_data_info(i) for i in range(len(data))]
    if not infos or not all(isinstance(info.get('gt_label'), (int, np.integer)) for info in infos):
        raise UserError(f'Corrupted: {name} has samples without an integer gt_label, or none; expected single labels')
    for info in infos:
        info.pop('sample_idx', None)  # get_data_info adds it
    classes = len(data.metainfo.get('classes', ())) or 1 + max(info['gt_label'] for info in infos)
    data.data_list, options = rewrite(
        infos, classes, label_noise=label_noise, imbalance=imbalance, validation=validation
    )
    data.corruption = report(options, data.data_list)
    if data.serialize_data:
        data.data_bytes, data.data_address = data._serialize_data()
    return data


def refuse_test(name: str) -> None:
    """Refuse to corrupt a test set.

    Raises:
        UserError: Always.
    """
    raise UserError(
        f'{name}: label_noise, imbalance and validation are for the training split; a test set stays as it is'
    )
