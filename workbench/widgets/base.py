"""What all widgets have in common: a place for a picture, clicks on it, messages, and a static copy.

Knows ipywidgets, and no table.
"""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from workbench.errors import MissingExtra
from workbench.trace.growing import Need
from workbench.trace.pictures import theme
from workbench.widgets.feed import Feed, feed_of, is_closed, trace_of
from workbench.widgets.selection import Selection

if TYPE_CHECKING:
    from ipywidgets import HTML, Text, VBox
else:
    try:
        from ipywidgets import HTML, Text, VBox
    except ImportError:  # said when somebody makes a widget
        HTML = Text = None
        VBox = object

logger = logging.getLogger(__name__)

# A click anywhere in the picture: what its nearest element with data-pick says goes into the widget's hidden
# input, and from there to the kernel.
ON_CLICK = (
    "const t=event.target.closest('[data-pick]');"
    "const i=t&&this.closest('.wb-widget').querySelector('.wb-pick input');"
    "if(i){i.value=t.dataset.pick;"
    "for(const e of ['input','change'])i.dispatchEvent(new Event(e,{bubbles:true}))}"
)


class NothingToShow(Exception):
    """Why there is no picture, as people shall read it in the widget's place."""


class Widget(VBox):
    """A picture of a trace or of a live engine, and what it can be asked.

    A subclass says which tables it `needs`, and draws: `draw()` returns HTML text from `self.feed[name]` and
    `self.selection`, or raises NothingToShow. It may return more ipywidgets from `controls()` and answer
    clicks in `picked(what)`; whatever changes what is drawn calls `refresh()`.

    Args:
        source: an LLM, or a Trace: recorded, being recorded, or loaded from a folder.
        selection: shared with other widgets; None: its own.

    Raises:
        TypeError: the source is something else.
        MissingExtra: ipywidgets is not installed.
    """

    needs: ClassVar[tuple[Need, ...]] = ("steps",)

    def __init__(self, source: object, selection: Selection | None = None) -> None:
        if HTML is None:
            raise MissingExtra("widgets need ipywidgets: pip install 'workbench[notebook]'")
        self.check(source)
        super().__init__()
        self.selection = Selection() if selection is None else selection
        self._closed = is_closed(source)
        self._shown = False  # it stood on a page once
        self._view_count = 0  # not None: pages count their views
        self.observe(self._viewed, "_view_count")
        self._place, self._pick = HTML(), Text()
        self._pick.add_class("wb-pick")
        self._pick.observe(self._clicked, "value")
        self.add_class("wb-widget")
        self.feed: Feed
        self._problem = ""  # why there is no feed
        try:
            self.feed = self.watch(source)
        except (ValueError, OSError) as error:  # a recording that is gone or damaged
            self._problem = str(error)
        self.children = [HTML(_styled("")), self._place, *self.controls(), self._pick]
        self.selection.observe(self.refresh)
        self.prepare()
        began = time.perf_counter()
        self.refresh()
        if not self._problem:
            self.feed.expect(time.perf_counter() - began)

    # --- where it looks ---------------------------------------------------------------------------------

    def check(self, source: object) -> None:
        """Raise TypeError for what it cannot show."""
        trace_of(source)

    def watch(self, source: object) -> Feed:
        """The feed of a source, which this widget has joined."""
        feed = feed_of(trace_of(source))
        feed.join(self)
        return feed

    # --- what a widget is -----------------------------------------------------------------------------

    @abstractmethod
    def draw(self) -> str:
        """What stands there now, as HTML text."""

    def controls(self) -> list[Any]:
        """More ipywidgets, below the picture."""
        return []

    def picked(self, what: str) -> None:
        """An element with this `data-pick` was clicked."""

    def prepare(self) -> None:
        """Ask the engine what it alone knows, ahead of drawing; here it may be waited for, in `draw` not."""

    def summary(self) -> str:
        """What `repr` says of it, in a few words."""
        return f"{len(self.feed['steps']['step'])} steps"

    # --- what all do ----------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Draw what there is now. A failure stands in the widget's place."""
        clicks = f'<div class="wb" onclick="{ON_CLICK}">'
        with nullcontext() if self._problem else self.feed.lock:  # a click may come in another thread
            self._place.value = f"{clicks}{self._drawn()}</div>"

    def _drawn(self) -> str:
        if self._problem:
            return theme.message(self._problem)
        try:
            self.feed.pull()
            drawn = self.draw()
        except NothingToShow as nothing:
            closed = "; the engine is closed: make a new one" if self._closed else ""
            return theme.message(f"{nothing}{closed}")
        except Exception as error:
            logger.exception("%s could not be drawn", type(self).__name__)
            return theme.message(f"this could not be drawn: {error!r}")
        note = "The engine is closed; this is its trace." if self._closed else ""
        return drawn + (f'<p class="note">{note}</p>' if note else "")

    @property
    def wanted(self) -> bool:
        """False once no page shows it any more: its cell ran again, say. ipywidgets keeps it all the same."""
        return bool(self._view_count) or not self._shown

    def _viewed(self, change: Any) -> None:
        if change["new"] and not change["old"]:
            self._shown = True
            self.refresh()  # it may have been left out

    def _clicked(self, change: Any) -> None:
        what = change["new"]
        if not what:
            return
        self._pick.value = ""  # the same element may be clicked again
        try:
            self.picked(what)
        except (LookupError, ValueError, TypeError):  # of a picture that is no more: the new one is shown
            logger.exception("%s: %r is not there to be clicked", type(self).__name__, what)
            self.refresh()

    def close(self) -> None:
        """Draw no more, and leave the notebook."""
        made = vars(self)  # ipywidgets closes what was refused, too
        if "feed" in made:
            self.feed.leave(self)
        if "selection" in made:
            self.selection.unobserve(self.refresh)
        super().close()

    def static(self) -> str:
        """The picture of how things stand, as HTML text that needs no script and nothing else."""
        self.prepare()
        return _styled(f'<div class="wb">{self._drawn()}</div>')

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._problem or self.summary()})"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """Live where there is a kernel, the static picture elsewhere, words where there are no pictures."""
        self.prepare()
        self.refresh()
        bundle = super()._repr_mimebundle_(**kwargs) or {}
        return {**bundle, "text/html": self.static(), "text/plain": repr(self)}


def _styled(html: str) -> str:
    return f"<style>{theme.style()}</style>{html}"


def linked(source: object, *kinds: type[Widget], selection: Selection | None = None) -> tuple[Widget, ...]:
    """Widgets over one source, with one selection: `a, b = linked(llm, TokenBudget, Requests)`."""
    shared = Selection() if selection is None else selection
    return tuple(kind(source, shared) for kind in kinds)
