"""Names that vLLM's LLM has and this engine has not yet, each with what to use instead. Knows no engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

_GENERATES = "this engine generates text; use generate or chat"
_NO_LORA = "only the base model runs"
_RESERVED = {
    "embed": _GENERATES,
    "encode": _GENERATES,
    "classify": _GENERATES,
    "score": _GENERATES,
    "add_lora": _NO_LORA,
    "remove_lora": _NO_LORA,
    "list_loras": _NO_LORA,
    "pin_lora": _NO_LORA,
}


def reserved(name: str) -> Callable[..., NoReturn] | None:
    """A method that says what to use instead; None where the name means nothing."""
    if name not in _RESERVED:
        return None

    def refuse(*args: Any, **options: Any) -> NoReturn:
        raise ValueError(f"{name} is not available yet: {_RESERVED[name]}")

    return refuse
