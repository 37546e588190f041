"""Which steps are shown, and which one is selected: two sliders and a button, for widgets over steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from workbench.widgets.selection import Selection


class Zoom:
    """A window of steps; it grows with the run until somebody chooses one."""

    def __init__(self, changed: Callable[[], None], selection: Selection) -> None:
        from ipywidgets import Button, HBox, IntRangeSlider, IntSlider, Layout

        wide = Layout(width="46%")
        self._changed, self._selection = changed, selection
        self._chosen: tuple[int, int] | None = None  # None: all steps
        self._silent = False  # the sliders move because of us
        self._range = IntRangeSlider(description="steps", min=0, max=0, continuous_update=False, layout=wide)
        self._step = IntSlider(description="selected", min=0, max=0, continuous_update=False, layout=wide)
        self._all = Button(description="all", tooltip="show all steps", layout=Layout(width="8%"))
        self._range.observe(self._range_moved, "value")
        self._step.observe(self._step_moved, "value")
        self._all.on_click(lambda _: self.show_all())
        self.controls: list[Any] = [HBox([self._range, self._all, self._step])]

    def show(self, first: int, last: int) -> None:
        """Only these steps."""
        self._chosen = (first, last)
        self._changed()

    def show_all(self) -> None:
        """All steps, as they come."""
        self._chosen = None
        self._changed()

    def window(self, indices: npt.NDArray[np.int64]) -> slice:
        """Places of the steps shown among those there are, at least one; the sliders follow."""
        low, high = int(indices[0]), int(indices[-1])
        first, last = self._chosen or (low, high)
        first, last = max(low, min(first, high)), min(high, max(last, low))
        self._follow(low, high, first, last)
        begin, end = np.searchsorted(indices, (first, last + 1)).tolist()
        return slice(min(begin, len(indices) - 1), max(end, begin + 1))

    def _follow(self, low: int, high: int, first: int, last: int) -> None:
        with self._silently():
            for slider in (self._range, self._step):
                if (slider.min, slider.max) != (low, high):
                    slider.min, slider.max = min(low, slider.min), max(high, slider.max)
                    slider.min, slider.max = low, high
            self._range.value = (first, last)
            if self._selection.step is not None:
                self._step.value = min(max(self._selection.step, low), high)

    def _range_moved(self, change: Any) -> None:
        if not self._silent:
            everything = tuple(change["new"]) == (self._range.min, self._range.max)
            self._chosen = None if everything else tuple(change["new"])
            self._changed()

    def _step_moved(self, change: Any) -> None:
        if not self._silent:
            self._selection.select(step=int(change["new"]))

    @contextmanager
    def _silently(self) -> Iterator[None]:
        self._silent = True
        try:
            yield
        finally:
            self._silent = False
