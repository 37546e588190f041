"""Requests over time, a lane each."""

from __future__ import annotations

from html import escape
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from workbench.trace.growing import Need
from workbench.trace.pictures import gantt
from workbench.trace.pictures.stretches import Stretches, Work
from workbench.trace.schema import Table
from workbench.widgets.base import NothingToShow, Widget
from workbench.widgets.zoom import Zoom

Longs = npt.NDArray[np.int64]

LANES = 32
COUNTS = ("prompt_tokens", "cached_tokens", "output_tokens", "recomputed_tokens", "preemptions")
TIMES = ("queue_s", "ttft_s", "tpot_s", "e2e_s")


class Requests(Widget):
    """A Gantt chart: waiting, prefill chunks, decode, preempted, finished; first tokens; the selected step.

    A click on a lane selects its request and says more of it. Where there are more requests than lanes, the
    picture above counts what all of them did; a click there zooms in, and a slider goes through the lanes.
    """

    needs: ClassVar[tuple[Need, ...]] = ("requests", "steps", "step_requests")

    def controls(self) -> list[Any]:
        from ipywidgets import IntSlider, Layout

        self._work, self._epoch = Work(), 0
        self._followed: str | None = None  # the selected request, once the lanes were moved to it
        self._moving = False  # the slider moves because of us
        self._goes_along = True  # with the oldest request that has not finished
        self.zoom = Zoom(self.refresh, self.selection)
        self.page = IntSlider(description="requests", min=0, max=0, layout=Layout(width="46%"))
        self.page.observe(self._page_moved, "value")
        return [*self.zoom.controls, self.page]

    def _page_moved(self, change: Any) -> None:
        if not self._moving:
            self._goes_along = False
            self.refresh()

    def draw(self) -> str:
        requests, steps = self.feed["requests"], self.feed["steps"]
        if not len(steps["step"]):
            raise NothingToShow("no step is over yet: run generate, or step")
        shown = self.zoom.window(steps["step"])
        window = None if shown == slice(0, len(steps["step"])) else shown
        found = gantt.gantt(requests, steps, self._stretches(requests, steps), window)
        there = gantt.alive(found, requests)
        if not len(there):
            raise NothingToShow("no request was there in these steps: show others")
        lanes = self._lanes(there, requests)
        part = gantt.close_up(found, requests, lanes) if len(there) > len(lanes) else found
        marked = _place(steps["step"], self.selection.step)
        drawn = gantt.draw(part, requests, lanes, marked, self.selection.request)
        if part is not found:
            drawn = gantt.draw_counts(found, part, marked) + drawn
        return drawn + gantt.legend_of(found) + _detail(requests, self.selection.request)

    def _stretches(self, requests: Table, steps: Table) -> Stretches:
        if self._epoch != self.feed.epoch:
            self._work, self._epoch = Work(), self.feed.epoch
        return self._work.take(requests, steps, self.feed["step_requests"])

    def _lanes(self, there: Longs, requests: Table) -> Longs:
        """Those that the slider is at."""
        most = max(len(there) - LANES, 0)
        first = int(min(self._first_lane(there, requests), most))
        self._moving = True
        self.page.max, self.page.value = most, first
        self.page.layout.display = None if most else "none"
        self._moving = False
        return there[first : first + LANES]

    def _first_lane(self, there: Longs, requests: Table) -> int:
        """It goes to a request that was just selected, and with those that run until somebody moves it."""
        chosen, first = self.selection.request, self.page.value
        if chosen != self._followed:
            self._followed = chosen
            rows = np.flatnonzero(requests["request_id"][there] == chosen)
            return int(rows[-1]) if len(rows) and not first <= rows[-1] < first + LANES else first
        running = np.flatnonzero(np.isnan(requests["finished_s"][there]))
        return int(running[0]) if self._goes_along and len(running) else first

    def picked(self, what: str) -> None:
        kind, *places = what.split(":")
        if kind == "request":
            self.selection.select(request=str(self.feed["requests"]["request_id"][int(places[0])]))
        else:
            first, last = (int(self.feed["steps"]["step"][int(place)]) for place in places)
            self.zoom.show(first, last)

    def summary(self) -> str:
        requests = self.feed["requests"]
        finished = int((~np.isnan(requests["finished_s"])).sum())
        count, preemptions = len(requests["request_id"]), int(requests["preemptions"].sum())
        return f"{count} requests, {finished} finished, {preemptions} preemptions"


def _place(steps: Longs, step: int | None) -> int | None:
    places = np.flatnonzero(steps == step)  # none where there is no step
    return int(places[0]) if len(places) else None


def _detail(requests: Table, name: str | None) -> str:
    """The latest request of that id, as HTML text."""
    places = np.flatnonzero(requests["request_id"] == name)
    if name is None or not len(places):
        return ""
    row = {column: values[places[-1]] for column, values in requests.items()}
    cells = [(column.replace("_", " "), str(row[column])) for column in COUNTS]
    cells += [(column.removesuffix("_s"), _seconds(float(row[column]))) for column in TIMES]
    cells.append(("ended by", str(row["finish_reason"] or "–")))
    head = "".join(f"<th>{escape(title)}</th>" for title, _ in cells)
    body = "".join(f"<td>{escape(value)}</td>" for _, value in cells)
    return (
        f"<h4>Request {escape(str(name))}</h4><div class=wide><table><thead><tr>{head}</tr></thead>"
        f"<tbody><tr>{body}</tr></tbody></table></div>"
    )


def _seconds(value: float) -> str:
    if np.isnan(value):
        return "–"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"
