"""What somebody points at: a step, a request, a block. Knows neither tables nor widgets."""

from __future__ import annotations

from collections.abc import Callable


class Selection:
    """Shared by widgets, so that what is clicked in one is marked in the others.

    `step` is a step's index, `request` a request's id, `block` a block's number; None: nothing is selected.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self.request: str | None = None
        self.block: int | None = None
        self._hearers: list[Callable[[], None]] = []

    def select(self, **chosen: int | str | None) -> None:
        """Point at something else: `select(step=12)`, `select(request="0", step=None)`.

        Raises:
            TypeError: there is nothing of that name to select.
        """
        for name in chosen:
            if name not in ("step", "request", "block"):
                raise TypeError(f"nothing is called {name!r} here: select a step, a request or a block")
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
