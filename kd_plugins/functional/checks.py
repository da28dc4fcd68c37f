"""What the losses check before they compute: shapes and numbers."""

from collections.abc import Sequence
from math import isfinite
from numbers import Integral, Real

import torch
from torch import Tensor


def check_shapes(condition: bool, name: str, expected: str, student: Tensor, teacher: Tensor, remedy: str) -> None:
    """Raise the one-line ValueError of loss ``name`` unless ``condition`` holds."""
    if not condition:
        shapes = f'student {tuple(student.shape)} and teacher {tuple(teacher.shape)}'
        raise ValueError(f'{name}: expected {expected}, got {shapes}; {remedy}')


def check_batch(name: str, student: Tensor, teacher: Tensor) -> None:
    """Check for two non-empty batches (B, ...) of the same size."""
    batches = min(student.ndim, teacher.ndim) > 1 and min(student.numel(), teacher.numel()) > 0
    expected, remedy = 'two non-empty batches (B, ...) of the same B', 'give both networks the same images'
    check_shapes(batches and len(student) == len(teacher), name, expected, student, teacher, remedy)


def check_maps(name: str, student: Tensor, teacher: Tensor) -> None:
    """Check for two batches of feature maps (B, C, H, W)."""
    maps, remedy = 'feature maps (B, C, H, W)', "tap layers that yield maps, or a transformer's blocks"
    check_shapes(student.ndim == teacher.ndim == 4, name, maps, student, teacher, remedy)
    check_batch(name, student, teacher)


def check_channels(name: str, student: Tensor, teacher: Tensor) -> None:
    """Check for equal C in maps (B, C, H, W), tokens (B, N, C) or vectors (B, C)."""
    axis = 2 if student.ndim == 3 else 1
    equal = student.shape[axis] == teacher.shape[axis]
    remedy = "add adapter='auto' to the term"
    check_shapes(equal, name, 'the same number of channels', student, teacher, remedy)


def check_positions(name: str, student: Tensor, teacher: Tensor, channels: bool = True) -> None:
    """Check for features that are compared position by position: of one kind, the same B, N and (``channels``) C."""
    kinds = 'two maps (B, C, H, W), two sequences of tokens (B, N, C) or two vectors (B, C)'
    alike = student.ndim == teacher.ndim and student.ndim in (2, 3, 4)
    check_shapes(alike, name, kinds, student, teacher, 'tap layers of the same kind')
    check_batch(name, student, teacher)
    if channels:
        check_channels(name, student, teacher)
    as_many = student.ndim != 3 or student.shape[1] == teacher.shape[1]
    check_shapes(as_many, name, 'the same number of tokens', student, teacher, 'tap layers of equal resolution')


def check_logits(
    name: str, student: Tensor, teacher: Tensor, positions: bool = False, independent: bool = False
) -> None:
    """Check for logits (N, K) of one shape, with ``positions`` also (N, L, K); of K > 1 unless ``independent``."""
    alike = student.shape == teacher.shape and student.ndim in (2, 2 + positions) and student.numel() > 0
    kinds = 'non-empty logits (N, K) or (N, L, K)' if positions else 'non-empty logits (N, K)'
    if student.shape == teacher.shape:
        remedy = 'tap the layer that predicts the classes, as head.fc'
    else:
        remedy = 'give both networks the same images and the same classes'
    check_shapes(alike, name, f'{kinds} of the same shape', student, teacher, remedy)
    if student.shape[-1] < 2 and not independent:
        raise ValueError(
            f'{name}: expected logits of two classes or more, got {tuple(student.shape)}: the softmax of one class is '
            'always 1; where it is a yes or no, take KDLoss(use_sigmoid=True)'
        )


def check_labels(name: str, logits: Tensor, labels: Tensor) -> None:
    """Check for a class of each row of logits (N, K)."""
    n, classes = logits.shape
    if labels.shape != (n,) or labels.dtype != torch.long:
        raise ValueError(
            f'{name}: expected labels ({n},) of type int64, one for each row of logits, got {tuple(labels.shape)} of '
            f'type {str(labels.dtype).removeprefix("torch.")}'
        )
    # A GPU, which checks indices itself, would have to be waited for.
    if labels.is_cpu and not torch.compiler.is_compiling() and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f'{name}: expected labels from 0 to {classes - 1} for logits of {classes} classes, got labels from '
            f'{int(labels.min())} to {int(labels.max())}; give both networks the classes of the data'
        )


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f'{name}: expected one of {", ".join(map(repr, choices))}, got {value!r}')


def check_number(name: str, value: float, low: float, strict: bool = False, whole: bool = False) -> None:
    """Raise ValueError unless ``value`` is a finite number of at least ``low`` (``strict``: above it)."""
    number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool) and isfinite(value)
    if not number or value < low or (strict and value == low):
        kind = 'a whole number' if whole else 'a number'
        raise ValueError(f'{name}: expected {kind} {"above" if strict else "of at least"} {low}, got {value!r}')
