"""The KV cache, block by block, through time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from workbench.trace.growing import Need
from workbench.trace.pictures import cache_map, cache_sums
from workbench.trace.pictures.block_detail import block_detail
from workbench.trace.pictures.block_history import BlockHistory
from workbench.trace.pictures.cache_cells import MOST_CELLS, Cells, Owners, cells, owners
from workbench.trace.pictures.sequences import Sequences
from workbench.trace.pictures.theme import heading
from workbench.trace.schema import Table
from workbench.widgets.adapter_controls import ColourBy
from workbench.widgets.base import NothingToShow, Widget

FRAMES = 200  # of a run that is played
FRAME_MS = 150


class CacheMap(Widget):
    """Every block: free, held, free and still findable, shared (by how many), evicted.

    It shows the selected step, or else how things stand now; the player goes through the steps, and so do the
    bars above the map. A click on a block selects it and says its tokens, its chain of keys and its holders.
    Where a cell is several blocks, a click zooms in. Colours are kinds, or adapters.
    """

    needs: ClassVar[tuple[Need, ...]] = ("steps", "requests", "tokens", "blocks")

    def controls(self) -> list[Any]:
        from ipywidgets import Button, HBox, IntRangeSlider, IntSlider, Layout, Play, jslink

        self._history, self._sequences, self._epoch = BlockHistory(), Sequences(), 0
        self._silent = False  # the controls move because of us
        self.player = Play(min=0, max=0, interval=FRAME_MS, show_repeat=False)
        self.step = IntSlider(description="step", min=0, max=0, layout=Layout(width="36%"))
        self.now = Button(description="now", tooltip="as it stands at the end", layout=Layout(width="8%"))
        self.range = IntRangeSlider(
            description="blocks", min=1, max=1, continuous_update=False, layout=Layout(width="30%")
        )
        self.all = Button(description="all", tooltip="show all blocks", layout=Layout(width="8%"))
        self._link = jslink((self.player, "value"), (self.step, "value"))
        self.step.observe(self._step_moved, "value")
        self.range.observe(self._range_moved, "value")
        self.now.on_click(lambda _: self.selection.select(step=None))
        self.all.on_click(lambda _: self._show(1, self.range.max))
        self.colour = ColourBy(self.refresh)
        return [HBox([self.player, self.step, self.now, self.range, self.all]), self.colour.control]

    def _step_moved(self, change: Any) -> None:
        if not self._silent:
            self.selection.select(step=int(change["new"]))

    def _range_moved(self, change: Any) -> None:
        if not self._silent:
            self.refresh()

    def _show(self, first: int, last: int) -> None:
        with self._silently():
            self.range.value = (first, last)
        self.refresh()

    def draw(self) -> str:
        steps, blocks = self.feed["steps"], self.feed["blocks"]
        if not len(steps["step"]):
            raise NothingToShow("no step is over yet: run generate, or step")
        if self._epoch != self.feed.epoch:
            self._history, self._sequences, self._epoch = BlockHistory(), Sequences(), self.feed.epoch
        self._history.take(blocks, steps)
        step = self._step(steps)
        states = self._history.at(step)
        window = self._window(len(states.codes))
        block = self.selection.block
        found = cells(states, window)
        owned = self._owned(found, blocks)
        return (
            heading(cache_map.headline(states, steps))
            + cache_sums.timeline(self._history, steps, step, plain=owned is not None)
            + cache_map.draw(found, blocks, block, owned)
            + self._detail(step)
        )

    def _owned(self, found: Cells, blocks: Table) -> Owners | None:
        colours = self.colour.colours(self.feed)
        return None if colours is None else owners(found, blocks, self.feed["requests"], colours)

    def _step(self, steps: Table) -> int | None:
        """The selected one, if the trace has it; the controls follow."""
        low, high = int(steps["step"][0]), int(steps["step"][-1])
        chosen = self.selection.step
        step = None if chosen is None or not low <= chosen <= high else chosen
        with self._silently():
            for control in (self.step, self.player):
                if (control.min, control.max) != (low, high):
                    control.min, control.max = min(low, control.min), max(high, control.max)
                    control.min, control.max = low, high
            self.player.step = max(1, (high - low) // FRAMES)
            self.step.value = high if step is None else step
        return step

    def _window(self, total: int) -> tuple[int, int]:
        """Blocks shown; all of them until somebody chooses."""
        with self._silently():
            if self.range.max != total:
                self.range.max = total
                self.range.value = (1, total)
        first, last = self.range.value
        return int(first), int(last)

    def _detail(self, step: int | None) -> str:
        if self.selection.block is None:
            return ""
        self._sequences.take(self.feed["requests"], self.feed["tokens"])
        return block_detail(
            self.feed["blocks"],
            self._sequences,
            self.selection.block,
            step,
            self.feed.config,
            self.feed.trace.decode,
        )

    def picked(self, what: str) -> None:
        kind, *numbers = what.split(":")
        if kind == "step":
            self.selection.select(step=int(numbers[0]))
        elif kind == "block":
            self.selection.select(block=int(numbers[0]))
        else:
            self._show(*self._around(*map(int, numbers)))

    def _around(self, first: int, last: int) -> tuple[int, int]:
        """The cell that was clicked and as many of its neighbours as can be shown as single blocks."""
        total = int(self.range.max)
        begin = min(max(first - (MOST_CELLS - (last - first + 1)) // 2, 1), total)
        begin = max(min(begin, total - MOST_CELLS + 1), 1)
        return begin, min(begin + MOST_CELLS - 1, total)

    def summary(self) -> str:
        steps = self.feed["steps"]
        if not len(steps["step"]):
            return "no steps"
        total = int(steps["blocks_free"][-1] + steps["blocks_held"][-1])
        most = int(steps["blocks_held"].max())
        return f"{len(steps['step'])} steps, {total} blocks, at most {most} held"

    @contextmanager
    def _silently(self) -> Iterator[None]:
        self._silent = True
        try:
            yield
        finally:
            self._silent = False
