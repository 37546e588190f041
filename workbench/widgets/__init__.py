"""Pictures of a trace, or of a live engine, in a notebook. Names load when they are first used.

How a widget is made up, from below:

1. `workbench.trace.growing.GrowingTables`: the trace's tables, growing as events come. Lines of steps,
   step_requests, tokens and blocks never change once they are there; requests are worked out anew.
2. `feed.Feed`: one for each trace that is looked at, found again by the next widget on the same trace or
   engine. It follows the trace (`Trace.follow`), hands out tables (`feed["steps"]`) and decides when its
   widgets draw: at most ten times a second, and for so small a part of the time in which the engine works
   that all widgets of an engine together slow it by less than 3 % (`workbench bench widgets`).
3. `workbench.trace.pictures.*`: pure functions from tables to frozen picture data, and from those to SVG or
   HTML text. The report uses them too. `pictures.theme` has the colours; classes, never colours, stand in the
   markup.
4. `base.Widget`: an `ipywidgets.VBox` that holds what a person chose (a zoom, a page) and says with `draw()`
   what stands there now. It shows every failure as a message in the widget's place, carries a static picture
   in its mime bundle, and turns a click on an element with `data-pick="..."` into a call of `picked("...")`.
5. `selection.Selection`: the step, request and block that somebody points at. Widgets that share one follow
   one another; `linked(source, TokenBudget, Requests)` makes some that do.

CONTRIBUTING.md, "Adding a widget", says what to write for a new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.lazy import loads_lazily

if TYPE_CHECKING:
    from workbench.widgets.base import linked
    from workbench.widgets.cache_map import CacheMap
    from workbench.widgets.dashboard import Dashboard
    from workbench.widgets.logprobs import Logprobs
    from workbench.widgets.prefix_tree import PrefixTree
    from workbench.widgets.requests import Requests
    from workbench.widgets.selection import Selection
    from workbench.widgets.stepper import Stepper
    from workbench.widgets.token_budget import TokenBudget

__all__ = [
    "CacheMap",
    "Dashboard",
    "Logprobs",
    "PrefixTree",
    "Requests",
    "Selection",
    "Stepper",
    "TokenBudget",
    "linked",
]

_HOMES = {
    "CacheMap": "workbench.widgets.cache_map",
    "Dashboard": "workbench.widgets.dashboard",
    "Logprobs": "workbench.widgets.logprobs",
    "PrefixTree": "workbench.widgets.prefix_tree",
    "Requests": "workbench.widgets.requests",
    "Selection": "workbench.widgets.selection",
    "Stepper": "workbench.widgets.stepper",
    "TokenBudget": "workbench.widgets.token_budget",
    "linked": "workbench.widgets.base",
}

__getattr__, __dir__ = loads_lazily(__name__, _HOMES)
