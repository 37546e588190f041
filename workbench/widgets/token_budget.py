"""The token budget, step by step: who got how many tokens of what kind."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from workbench.trace.growing import Need
from workbench.trace.pictures import token_budget
from workbench.widgets.adapter_controls import ColourBy
from workbench.widgets.base import NothingToShow, Widget
from workbench.widgets.zoom import Zoom


class TokenBudget(Widget):
    """A bar a step, stacked by request and kind, or by adapter, against the budget's line.

    A click on a bar selects its step, for the widgets that share the selection too, and shows who got what; a
    bar that holds several steps zooms in. The sliders do the same.
    """

    needs: ClassVar[tuple[Need, ...]] = ("steps", "step_requests", "requests")

    def controls(self) -> list[Any]:
        self.zoom = Zoom(self.refresh, self.selection)
        self.colour = ColourBy(self.refresh)
        return [*self.zoom.controls, self.colour.control]

    def draw(self) -> str:
        steps, chunks = self.feed["steps"], self.feed["step_requests"]
        if not len(steps["step"]):
            raise NothingToShow("no step is over yet: run generate, or step")
        colours = self.colour.colours(self.feed)
        found = token_budget.bars(steps, chunks, self.zoom.window(steps["step"]), colours)
        selected = self.selection.step
        detail = "" if selected is None else token_budget.step_table(steps, chunks, selected)
        return token_budget.draw(found, selected) + detail

    def picked(self, what: str) -> None:
        first, _, last = what.partition(":")
        if last:
            self.zoom.show(int(first), int(last))
        else:
            self.selection.select(step=int(first))

    def summary(self) -> str:
        steps = self.feed["steps"]
        budget = int(np.max(steps["budget"], initial=0))
        return f"{len(steps['step'])} steps, {int(steps['scheduled'].sum())} tokens, budget {budget}"
