"""Names in messages."""

import difflib
from collections.abc import Iterable, Sequence


def first(items: Sequence[str], separator: str = ', ') -> str:
    """Return the first three, and how many more there are."""
    return separator.join(items[:3]) + (f' (and {len(items) - 3} more)' if len(items) > 3 else '')


def nearest(name: object, known: Iterable[str], most: int = 4) -> str:
    """Return ``'nearest names: a, b'``: the known names most like one; where none is like it, the first few."""
    known = [other for other in known if other]
    like = difflib.get_close_matches(str(name), known, most, 0.4) or known[:most]
    return f'nearest names: {", ".join(like) or "none"}'


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return ``"did you mean 'a'?"``; where no option is like the name, the list of all."""
    options = list(options)
    like = difflib.get_close_matches(name, options, 1)
    return f"did you mean '{like[0]}'?" if like else f'options are {", ".join(options) or "none"}'
