"""Which colour stands for which LoRA adapter, in every picture of a trace: the first one seen has the first.

Six adapters have colours of their own; those after them share one, and the base model has a grey.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from workbench.trace.pictures.theme import ADAPTERS
from workbench.trace.schema import Table

BASE, FURTHER = "base", "further"  # classes in `theme`


class Colours(NamedTuple):
    """Classes by the names of adapters; None is the base model."""

    classes: Mapping[str | None, str]

    def of(self, adapters: Iterable[str | None]) -> list[str]:
        """A class for each."""
        return [self.classes[adapter] for adapter in adapters]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The classes there are, each once, the base model's first."""
        return tuple(dict.fromkeys(self.classes.values()))

    @property
    def legend(self) -> list[tuple[str, str]]:
        """(class, what it means) of those there are."""
        further = [name for name, kind in self.classes.items() if kind == FURTHER]
        own = [(kind, name or "base model") for name, kind in self.classes.items() if kind != FURTHER]
        return own + ([(FURTHER, f"{len(further)} further adapters")] if further else [])


def colours_of(requests: Table) -> Colours | None:
    """Those of a trace's requests; None where nobody has an adapter."""
    seen = adapters_of(requests)
    if not seen:
        return None
    own = (*ADAPTERS, *[FURTHER] * (len(seen) - len(ADAPTERS)))
    return Colours({None: BASE, **dict(zip(seen, own, strict=False))})


def adapters_of(requests: Table) -> list[str]:
    """Their names, the first one seen first."""
    return [name for name in dict.fromkeys(requests["adapter"].tolist()) if name is not None]


def adapters_by_request(requests: Table) -> dict[str, str | None]:
    """The adapter of each request id; of an id that was used again, the last one's."""
    return dict(zip(requests["request_id"].tolist(), requests["adapter"].tolist(), strict=True))
