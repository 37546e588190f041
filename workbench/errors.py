"""How a wrong name at the public boundary is turned away: with the value and the remedy.

Knows no class and no setting of the engine; callers bring the names that are valid and those that were
replaced.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping


def check_names(
    owner: str, given: Iterable[str], valid: Collection[str], replaced: Mapping[str, str] | None = None
) -> None:
    """Raise TypeError for the first of `given` that is not in `valid`.

    Args:
        owner: what the names are given to, as the message shall call it.
        given: names as the caller wrote them.
        valid: names that exist.
        replaced: names known from elsewhere or from earlier days, each with what to do instead.
    """
    for name in given:
        if name not in valid:
            raise TypeError(_complaint(owner, name, valid, replaced or {}))


def _complaint(owner: str, name: str, valid: Collection[str], replaced: Mapping[str, str]) -> str:
    if name in replaced:
        return f"{owner} has no {name!r}: {replaced[name]}"
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    if near:
        return f"{owner} has no {name!r}: did you mean {near[0]!r}?"
    return f"{owner} has no {name!r}; it takes {', '.join(sorted(valid))}"


class MissingExtra(RuntimeError):
    """Something was asked for that needs an optional dependency; the message says how to install it."""


class DeviceLost(RuntimeError):
    """The device computes no more: whatever it is asked from now on fails too."""
