"""The backends by name, what each needs to be installed, and the order in which "auto" tries them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from workbench.structured.grammar import Backend, Vocabulary

AUTO = "auto"
MODULES = {
    "xgrammar": "xgrammar",
    "guidance": "llguidance",
    "outlines": "outlines_core",
}  # in the order tried
_EXTRA = "pip install workbench[grammars]"
_INSTALL = {"xgrammar": "pip install xgrammar", "guidance": _EXTRA, "outlines": _EXTRA}


def backends_for(name: str) -> tuple[str, ...]:
    """The backends that a setting stands for.

    Raises:
        ValueError: unknown, or not installed; the message says how to install it.
    """
    if name == AUTO:
        return tuple(backend for backend in MODULES if is_installed(backend)) or ("xgrammar",)
    if name not in MODULES:
        raise ValueError(f"the backend {name!r} is unknown: use one of {', '.join((AUTO, *MODULES))}")
    if not is_installed(name):
        raise ValueError(f"the backend {name!r} is not installed: {_INSTALL[name]}")
    return (name,)


def absent(names: Sequence[str]) -> list[str]:
    """What could be installed beside these."""
    return [name for name in MODULES if name not in names and not is_installed(name)]


def is_installed(name: str) -> bool:
    return find_spec(MODULES[name]) is not None


def open_backend(name: str, vocabulary: Vocabulary) -> Backend:
    """The backend for a vocabulary; its library is imported now."""
    if name == "guidance":
        from workbench.structured.guidance import Guidance

        return Guidance(vocabulary)
    if name == "outlines":
        from workbench.structured.outlines import Outlines

        return Outlines(vocabulary)
    from workbench.structured.xgrammar import XGrammar

    return XGrammar(vocabulary)
