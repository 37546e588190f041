"""What widgets see of a trace: its tables as they grow, and when to draw. Knows no picture, no widget."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from workbench.engine.events import (
    BudgetChanged,
    Event,
    QueueReordered,
    RequestArrived,
    RequestFinished,
    StepCommitted,
    StepFailed,
    StepPlanned,
)
from workbench.trace import Trace
from workbench.trace.growing import GrowingTables, Name
from workbench.trace.schema import Table, Tables

SHORTEST = 0.1  # seconds between two draws
IDLE = 66.0  # seconds of not drawing for each second of drawing: 1.5 %, as much again is lost around it
SOON = (RequestArrived, RequestFinished, QueueReordered, BudgetChanged)  # drawn once the cell is done
MOST_LINES = 1_000_000  # of step_requests, about 100 MB; a ring is read again when there are more


class View(Protocol):
    """Something that draws from a feed."""

    needs: tuple[Name, ...]

    def prepare(self) -> None:
        """Ask of others what is to be drawn, where that may mean to wait for the engine; never raises."""

    def refresh(self) -> None:
        """Draw what there is now; never raises."""


class Feed:
    """The tables of one trace, for any number of views; it draws them as the trace grows.

    What happens in the engine's thread is: an event is put into a list, and, when a draw is due, the views
    draw within the step. What comes after a draw and is not followed by another due one is drawn later, by
    the event loop in which the feed was made: in a notebook, as soon as the cell is done. Where there is no
    loop, it is drawn when the engine has nothing left to do.
    """

    def __init__(self, trace: Trace, clock: Callable[[], float] = time.perf_counter) -> None:
        self.trace = trace
        self.epoch = 0  # rises when tables begin anew: what a view has read before counts no more
        self._clock = clock
        self._loop = _running_loop()
        self._views: tuple[View, ...] = ()
        self.lock = threading.RLock()  # held by who draws: the engine's thread, or the notebook's
        self._due = 0.0  # by the clock
        self._late = False  # a draw by the loop is to come
        self._tables: GrowingTables | Tables = GrowingTables(())
        self._start(())

    def _start(self, names: Iterable[Name]) -> None:
        """Read the trace from its beginning, as far as it goes back. Not under the lock: it takes a turn."""
        self.trace.unfollow(self)
        self.epoch += 1
        if not self.trace.has_events:
            self._tables = self.trace.columns
            return
        self._ready = False
        self._waiting: list[Event] = []
        self._tables = GrowingTables(names, self.trace.decode)
        self._activity = _Activity()
        kept = self.trace.follow(self).events
        with self.lock:
            self._waiting = kept + self._waiting
            self._activity.begin(kept)
            self._ready = True

    # --- views ----------------------------------------------------------------------------------------

    def join(self, view: View) -> None:
        """`view` draws from now on as the trace grows."""
        tables = self._tables
        if isinstance(tables, GrowingTables) and not tables.names >= set(view.needs):
            self._start(tables.names | set(view.needs))
        self._views = (*self._views, view)

    def leave(self, view: View) -> None:
        """It draws no more; with the last one, the feed follows the trace no more."""
        self._views = tuple(other for other in self._views if other is not view)
        if not self._views:
            self.trace.unfollow(self)

    def pull(self, wait: bool = True) -> None:
        """Take in what has happened; without `wait`, only if nobody draws from it now."""
        if not self.lock.acquire(blocking=wait):
            return
        try:
            if isinstance(self._tables, GrowingTables) and self._ready and self._waiting:
                waiting, self._waiting = self._waiting, []
                self._tables.take(waiting)
        finally:
            self.lock.release()

    def __getitem__(self, name: Name) -> Table:
        """A table of the trace, as of the last `pull`."""
        if isinstance(self._tables, GrowingTables):
            return self._tables[name]
        table: Table = getattr(self._tables, name)
        return table

    @property
    def runs(self) -> bool:
        """Whether the engine has something to do."""
        return isinstance(self._tables, GrowingTables) and not self._activity.quiet

    @property
    def config(self) -> dict[str, Any]:
        """The engine's settings as resolved; empty where nobody said them."""
        if isinstance(self._tables, GrowingTables):
            return self._tables.config
        said: dict[str, Any] = json.loads(self._tables.runs["config"][0])
        return said

    # --- drawing in time ------------------------------------------------------------------------------

    def __call__(self, event: Event) -> None:
        """Hears the trace's events."""
        self._waiting.append(event)
        self._activity.take(event)
        quiet = self._activity.quiet
        now = quiet or type(event) is StepCommitted
        if not self._views or not (now or type(event) in SOON):
            return
        wait = self._due - self._clock()
        if now and (wait <= 0 or (quiet and self._loop is None)):
            self._draw()
        elif self._loop is not None and not self._late:
            self._late = True
            try:
                self._loop.call_soon_threadsafe(self._loop.call_later, max(wait, 0.0), self._draw_late)
            except RuntimeError:  # the loop is closed
                self._loop, self._late = None, False

    def _draw_late(self) -> None:
        self._late = False
        if self._waiting:
            self._draw()

    def _draw(self) -> None:
        began = self._clock()
        if self._too_long():
            self._start(self._tables.names if isinstance(self._tables, GrowingTables) else ())
        for view in self._views:  # not under the lock: whoever holds the engine's turn may want to draw
            view.prepare()
        with self.lock:
            for view in self._views:
                view.refresh()
        ended = self._clock()
        self._due = ended + max(SHORTEST, IDLE * (ended - began))

    def _too_long(self) -> bool:
        return self.trace.max_steps is not None and len(self["step_requests"]["step"]) > MOST_LINES


class _Activity:
    """Whether an engine has something to do, by what it said."""

    def __init__(self) -> None:
        self._open: set[str] = set()  # requests
        self._in_flight = 0  # steps

    def begin(self, events: Iterable[Event]) -> None:
        """What happened before."""
        for event in events:
            self.take(event)

    def take(self, event: Event) -> None:
        kind = type(event)
        if kind is StepPlanned:
            self._in_flight += 1
        elif kind is StepCommitted:
            self._in_flight -= 1
        elif kind is StepFailed:
            self._in_flight = 0
        elif isinstance(event, RequestArrived):
            self._open.add(event.request_id)
        elif isinstance(event, RequestFinished):
            self._open.discard(event.request_id)

    @property
    def quiet(self) -> bool:
        return not self._open and self._in_flight <= 0


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


# --- from what people pass ------------------------------------------------------------------------------


def trace_of(source: object) -> Trace:
    """The trace of what a widget was given.

    Raises:
        TypeError: it is neither a trace nor an engine.
    """
    trace = source if isinstance(source, Trace) else getattr(source, "trace", None)
    if not isinstance(trace, Trace):
        raise TypeError(
            f"source is {type(source).__name__}: use an LLM, a Trace, or Trace.load(folder) for one on disk"
        )
    return trace


def is_closed(source: object) -> bool:
    """Whether it is an engine that was closed; its trace can still be read."""
    observe = getattr(source, "observe", None)
    if isinstance(source, Trace) or observe is None:
        return False
    try:
        observe(_ignore).end()
    except RuntimeError:
        return True
    return False


def _ignore(event: Event) -> None:
    """Nobody is told."""


def feed_of(trace: Trace) -> Feed:
    """The one that follows this trace already, or a new one."""
    known = [follower for follower in trace.followers if isinstance(follower, Feed)]
    return known[0] if known else Feed(trace)
