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
from workbench.trace.growing import GrowingTables, Name, Need
from workbench.trace.schema import Table, Tables

SHORTEST = 0.1  # seconds between two draws
IDLE = 80.0  # seconds of the engine's work for each second of drawing: 1.25 %, and more is lost around it
FIRST = 0.004  # seconds that a view's next draw takes at least, while it is known from its first only,
MOST = 0.05  # and at most: the first one reads all that there is
SOON = (RequestArrived, RequestFinished, QueueReordered, BudgetChanged)  # drawn once the cell is done
MOST_LINES = 1_000_000  # of step_requests, about 100 MB; a ring is read again when there are more


class View(Protocol):
    """Something that draws from a feed."""

    needs: tuple[Need, ...]

    @property
    def wanted(self) -> bool:
        """Whether somebody may see what it draws."""

    def prepare(self) -> None:
        """Ask of others what is to be drawn, where that may mean to wait for the engine; never raises."""

    def refresh(self) -> None:
        """Draw what there is now; never raises."""


class Feed:
    """The tables of one trace, for any number of views; it draws them as the trace grows.

    What happens in the engine's thread is: an event is put into a list, and, when a draw is due, the views
    draw within the step. A draw is due when the engine has worked long enough to pay for it: its idle time
    does not count, so that short runs are not slowed either. What is not due is drawn by the event loop in
    which the feed was made: in a notebook, as soon as the cell is done. Where there is no loop, nobody sees
    it grow: it is drawn when the engine has nothing left to do, and as rarely.
    """

    def __init__(self, trace: Trace, clock: Callable[[], float] = time.perf_counter) -> None:
        self.trace = trace
        self.epoch = 0  # rises when tables begin anew: what a view has read before counts no more
        self._clock = clock
        self._loop = _running_loop()
        self._views: tuple[View, ...] = ()
        self.lock = threading.RLock()  # held by who draws: the engine's thread, or the notebook's
        self.spent = 0.0  # seconds of drawing so far
        self._drawn = -SHORTEST  # by the clock
        self._owed = 0.0  # seconds that the engine shall have worked before the next draw
        self._end_due = 0.0  # by the clock: the end of the work is drawn again, where there is no loop
        self._late = False  # a draw by the loop is to come
        self._tables: GrowingTables | Tables = GrowingTables(()) if trace.has_events else trace.columns
        self._waiting: list[Event] = []
        self._ready = False
        self._activity = _Activity()

    def _start(self, names: Iterable[Need]) -> None:
        """Read the trace from its beginning, as far as it goes back. Not under the lock: it takes a turn."""
        self.trace.unfollow(self)
        self.epoch += 1
        self._ready, self._waiting = False, []
        self._tables = GrowingTables(names, self.trace.decode)
        self._activity, self._owed = _Activity(), IDLE * FIRST * len(self._views)
        kept = self.trace.follow(self).events
        with self.lock:
            self._waiting = kept + self._waiting
            self._activity.begin(kept, self._clock())
            self._ready = True

    # --- views ----------------------------------------------------------------------------------------

    def join(self, view: View) -> None:
        """`view` draws from now on as the trace grows."""
        tables = self._tables
        if isinstance(tables, GrowingTables) and not (self._views and tables.names >= set(view.needs)):
            self._start(tables.names | set(view.needs))
        self._views = (*self._views, view)
        self._owed += IDLE * FIRST

    def expect(self, seconds: float) -> None:
        """A view that has just joined took so long to be drawn for the first time."""
        self._owed += IDLE * min(max(seconds - FIRST, 0.0), MOST)

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
        now = self._clock()
        self._activity.take(event, now)
        quiet = self._activity.quiet
        step = quiet or type(event) is StepCommitted
        if not self._views or not (step or type(event) in SOON):
            return
        if step and self._wait(now) <= 0:
            self._draw()
        elif self._loop is not None:
            self._draw_soon(self._drawn + SHORTEST - now)
        elif quiet and now >= self._end_due:
            self._end_due = now + self._draw() * (1 + IDLE)

    def _wait(self, now: float) -> float:
        """Seconds until the next draw is due, if the engine works on."""
        return max(self._drawn + SHORTEST - now, self._owed - self._activity.worked(now))

    def _draw_soon(self, wait: float) -> None:
        """The loop draws, once it gets to it: when the cell is done, or while the engine works elsewhere."""
        if self._late or self._loop is None:
            return
        self._late = True
        try:
            self._loop.call_soon_threadsafe(self._loop.call_later, max(wait, 0), self._draw_late)
        except RuntimeError:  # the loop is closed
            self._loop, self._late = None, False

    def _draw_late(self) -> None:
        self._late = False
        now = self._clock()
        if not self._activity.idle(now) and self._wait(now) > 0:
            self._draw_soon(SHORTEST)
        elif self._waiting:
            self._draw()

    def _draw(self) -> float:
        """Draw everything now; how long it took."""
        began = self._clock()
        if self._too_long():
            self._start(self._tables.names if isinstance(self._tables, GrowingTables) else ())
        for view in self._views:  # not under the lock: whoever holds the engine's turn may want to draw
            view.prepare()
        with self.lock:
            for view in self._views:
                if view.wanted:
                    view.refresh()
        self._drawn = self._clock()
        took = self._drawn - began
        self.spent += took
        self._owed = self._activity.worked(self._drawn) + IDLE * took
        return took

    def _too_long(self) -> bool:
        return self.trace.max_steps is not None and len(self["step_requests"]["step"]) > MOST_LINES


class _Activity:
    """Whether an engine has something to do, by what it said, and how long it had."""

    def __init__(self) -> None:
        self._open: set[str] = set()  # requests
        self._in_flight = 0  # steps
        self._worked, self._at = 0.0, 0.0  # seconds with something to do, until then

    def begin(self, events: Iterable[Event], now: float) -> None:
        """What happened before; the time it took is not counted."""
        for event in events:
            self._count(event)
        self._at = now

    def take(self, event: Event, now: float) -> None:
        self._worked, self._at = self.worked(now), now
        self._count(event)

    def _count(self, event: Event) -> None:
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

    def worked(self, now: float) -> float:
        """Seconds with something to do, up to now."""
        return self._worked if self.quiet else self._worked + now - self._at

    def idle(self, now: float) -> bool:
        """Whether drawing holds up nobody: there is nothing to do, or nobody does it."""
        return self.quiet or (self._in_flight <= 0 and now - self._at >= SHORTEST)

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
