"""What somebody points at: a step, a request, a block. Knows neither tables nor widgets."""

from __future__ import annotations

from collections.abc import Callable
from typing import SupportsIndex

from workbench.checks import integer


class Selection:
    """Shared by widgets, so that what is clicked in one is marked in the others.

    `step` is a step's index, `request` a request's id, `block` a block's number; None: nothing is selected.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self.request: str | None = None
        self.block: int | None = None
        self._hearers: list[Callable[[], None]] = []

    def select(self, **chosen: SupportsIndex | str | None) -> None:
        """Point at something else: `select(step=12)`, `select(request="0", step=None)`.

        Raises:
            TypeError: there is nothing of that name to select, or it is told otherwise.
        """
        chosen = {name: _checked(name, value) for name, value in chosen.items()}
        if all(getattr(self, name) == value for name, value in chosen.items()):
            return
        vars(self).update(chosen)
        for hearer in tuple(self._hearers):
            hearer()

    def observe(self, hearer: Callable[[], None]) -> None:
        """`hearer` is called whenever something else is selected."""
        self._hearers.append(hearer)

    def unobserve(self, hearer: Callable[[], None]) -> None:
        """It is called no more; one that is not is left alone."""
        if hearer in self._hearers:
            self._hearers.remove(hearer)

    def __repr__(self) -> str:
        return f"Selection(step={self.step}, request={self.request!r}, block={self.block})"


def _checked(name: str, value: object) -> int | str | None:
    """What is selected, as a plain value; numpy's integers are integers, too."""
    if name not in ("step", "request", "block"):
        raise TypeError(f"nothing is called {name!r} here: select a step, a request or a block")
    if value is None:
        return None
    if name != "request":
        return integer(name, value)
    if not isinstance(value, str):
        raise TypeError(f"request is {value!r}: use a request's id, a str")
    return value
