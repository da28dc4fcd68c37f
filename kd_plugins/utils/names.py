"""Lists of names in messages."""

import difflib
import string
from collections.abc import Iterable, Sequence


def first(items: Sequence[str], separator: str = ', ') -> str:
    """Return the first three items, and the number of the others."""
    return separator.join(items[:3]) + (f' (and {len(items) - 3} more)' if len(items) > 3 else '')


def nearest(name: object, known: Iterable[str], most: int = 4) -> str:
    """Return ``'nearest names: a, b'``: the known names most similar to a name, or the first few if none is similar."""
    known = [other for other in known if other]
    near = difflib.get_close_matches(str(name), known, most, 0.4) or known[:most]
    return f'nearest names: {", ".join(near) or "none"}'


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return ``"did you mean 'a'?"``, or a list of all options if none is similar to the name."""
    options = list(options)
    near = difflib.get_close_matches(name, options, 1)
    return f"did you mean '{near[0]}'?" if near else f'options are {", ".join(options) or "none"}'


def brief(value: object) -> str:
    """Return how a value prints, in a line of 100 characters at most: a network prints as hundreds of lines."""
    text = ' '.join(repr(value).split())
    return text if len(text) <= 100 else f'{text[:97]}...'


def one_slip(word: str, other: str) -> bool:
    """Return whether two words differ by one letter added, left out or replaced, or by two letters swapped.

    Names that differ in a digit name different things.
    """
    if word == other:
        return False
    same = next((i for i, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), min(len(word), len(other)))
    a, b = word[same:], other[same:]  # from where they differ
    letters = {*string.ascii_lowercase, '_'}
    return (
        (a[1:] == b and a[0] in letters)
        or (b[1:] == a and b[0] in letters)
        or bool(a and b and a[1:] == b[1:] and {a[0], b[0]} <= letters)
        or (a[:2] == b[1::-1] and a[2:] == b[2:])
    )
