"""Names that vLLM's LLM has and this engine has not yet, each with what to use instead. Knows no engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

_GENERATES = "this engine generates text; use generate or chat"
_RESERVED = {
    "embed": _GENERATES,
    "encode": _GENERATES,
    "classify": _GENERATES,
    "score": _GENERATES,
}


def reserved(name: str) -> Callable[..., NoReturn] | None:
    """A method that says what to use instead; None where the name means nothing."""
    if name not in _RESERVED:
        return None

    def refuse(*args: Any, **options: Any) -> NoReturn:
        raise ValueError(f"{name} is not available yet: {_RESERVED[name]}")

    return refuse
