"""Lists of names in messages."""

import difflib
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
