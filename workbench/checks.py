"""One value a call: brought to its plain type, or refused with an error that names it and the remedy.

Knows no setting and no limit; callers bring the name, the range and the remedy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real


def integer(name: str, value: object) -> int:
    """Any integer, numpy's too; a bool is none."""
    if type(value) is int:  # ahead of the abstract classes, which numpy's scalars need and which are slow
        return value
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r}: use an integer")
    return int(value)


def real(name: str, value: object) -> float:
    """Any finite number; a bool is none."""
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, Real)):
        raise TypeError(f"{name} is {value!r}: use a number")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond every float
        raise ValueError(f"{name} is beyond every float: use a finite number") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}: use a finite number")
    return number


def at_least(name: str, value: object, low: int, remedy: str = "") -> int:
    """An integer of `low` or more."""
    number = integer(name, value)
    if number < low:
        raise ValueError(f"{name} is {number}: use {low} or more" + (f"; {remedy}" if remedy else ""))
    return number


def within(name: str, value: object, low: float, high: float, remedy: str = "") -> float:
    """A number in [low, high]."""
    number = real(name, value)
    if not low <= number <= high:
        raise ValueError(f"{name} is {number:g}: use {low:g} to {high:g}" + (f"; {remedy}" if remedy else ""))
    return number


def above_zero(name: str, value: object, remedy: str) -> float:
    """A number greater than 0."""
    number = real(name, value)
    if number <= 0.0:
        raise ValueError(f"{name} is {number:g}: use more than 0; {remedy}")
    return number


def top_count(name: str, value: object) -> int | None:
    """How many of the most likely tokens to report; None (or False) is none, True is one."""
    if value is None or value is False:
        return None
    if value is True:
        return 1
    return at_least(name, value, -1, remedy="0 gives the sampled token only, -1 the whole vocabulary")


def strings(name: str, value: str | Iterable[str] | None) -> list[str]:
    """A list of non-empty strings, from one string, several or None."""
    if value is None:
        return []
    if not isinstance(value, Iterable) or isinstance(value, bytes | bytearray):
        raise TypeError(f"{name} is {value!r}: use a string, or a list of strings")
    found = [value] if isinstance(value, str) else list(value)
    for item in found:
        if not isinstance(item, str):
            raise TypeError(f"{name} holds {item!r}: use strings")
        if not item:
            raise ValueError(f"{name} holds an empty string, which every text contains: leave it out")
    return found


def token_ids(name: str, value: object) -> list[int]:
    """A list of integers, each 0 or more."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name} is {value!r}: use a list of token ids")
    return [at_least(f"a token id in {name}", item, 0) for item in value]
