"""Names of a package that are loaded when they are first used. Knows no name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping


def loads_lazily(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__`; `homes`: name -> the module that has it."""

    def load(name: str) -> object:
        module = sys.modules[package]
        if name not in homes:
            raise AttributeError(f"{package} has no {name!r}; it has {', '.join(module.__all__)}")
        value: object = getattr(importlib.import_module(homes[name]), name)
        setattr(module, name, value)  # the next look-up finds it without coming here
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return load, names
