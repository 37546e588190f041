"""The run at a glance: throughput, queues, KV cache, prefix cache, drafts."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from workbench.trace.growing import Need
from workbench.trace.pictures import dashboard
from workbench.widgets.base import NothingToShow, Widget
from workbench.widgets.zoom import Zoom


class Dashboard(Widget):
    """A row each for tokens generated and computed a second, requests running and waiting, KV blocks held,
    prompt tokens found in the prefix cache, and drafts accepted, where there are any.

    While an engine runs, the large figures are those of now, afterwards those of all that is shown. A click
    selects its step, for the widgets that share the selection too, or zooms in where it stands for several.
    """

    needs: ClassVar[tuple[Need, ...]] = ("steps",)

    def controls(self) -> list[Any]:
        self.zoom = Zoom(self.refresh, self.selection)
        return self.zoom.controls

    def draw(self) -> str:
        steps = self.feed["steps"]
        if not len(steps["step"]):
            raise NothingToShow("no step is over yet: run generate, or step")
        window = self.zoom.window(steps["step"])
        everything = window == slice(0, len(steps["step"]))
        found = dashboard.rows(steps, window, now=everything and self.feed.runs)
        places = np.flatnonzero(steps["step"] == self.selection.step)  # none where there is no step
        if not len(places):
            return dashboard.draw(found)
        place = int(places[0])
        return dashboard.draw(found, place) + dashboard.step_line(steps, found, place)

    def picked(self, what: str) -> None:
        first, last = (int(self.feed["steps"]["step"][int(place)]) for place in what.split(":"))
        if first == last:
            self.selection.select(step=first)
        else:
            self.zoom.show(first, last)

    def summary(self) -> str:
        steps = self.feed["steps"]
        generated = int(steps["sampled"].sum() + steps["forced"].sum())
        counted = dashboard.counted
        return f"{counted(len(steps['step']), 'step')}, {counted(generated, 'token')} generated"
