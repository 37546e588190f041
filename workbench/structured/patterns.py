"""What a backend would leave out of a regular expression without a word. Knows no backend and no schema."""

from __future__ import annotations

import re

# An escape, a set, the beginning of a lookahead, any other sign.
_SIGNS = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\(\?[=!]|.", re.DOTALL)


def dropped(pattern: str) -> str | None:
    """The first part of a pattern that asks for more than the text that it spells, or None.

    That is a lookahead, and an anchor that does not stand where the pattern, or one of its alternatives,
    begins or ends. One in a group is among them: what is outside the group may come before or after it.
    """
    signs = _SIGNS.findall(pattern)
    depth = 0
    for place, sign in enumerate(signs):
        if sign in ("(?=", "(?!"):
            return "its lookahead"
        beside = signs[place - 1 : place] if sign == "^" else signs[place + 1 : place + 2]
        if sign in "^$" and (depth or beside not in ([], ["|"])):
            return f"its {sign!r} inside"
        depth += (sign == "(") - (sign == ")")
    return None
