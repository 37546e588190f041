"""Keeps the events of an engine, in order: the last steps, or everything. Derives nothing from them.

Cheap by construction: an event is kept as it came, with its arrays; tables are made when somebody looks.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass, replace
from itertools import chain

from workbench.engine.events import (
    AdapterLoaded,
    AdapterPinned,
    AdapterRemoved,
    EngineStarted,
    Event,
    RequestAdmitted,
    RequestArrived,
    RequestFinished,
    RequestReady,
    StepFailed,
    StepPlanned,
)

EVENTS_PER_STEP = 64  # arrivals and ends that a ring may hold for each of its steps


@dataclass(frozen=True, slots=True)
class Recording:
    """What is known of a run so far."""

    events: list[Event]
    dropped_steps: int  # older steps that are no longer in `events`


class _Pins:
    """Which adapters are pinned, and how those came to their slots that had none when it was done."""

    def __init__(self) -> None:
        self._pinned: dict[str, AdapterPinned] = {}  # by the adapter's name
        self._loaded: dict[str, AdapterLoaded] = {}

    def take(self, event: Event) -> None:
        if type(event) is AdapterPinned:
            self._pinned[event.adapter] = event
        elif type(event) is AdapterLoaded and event.adapter in self._pinned:
            self._loaded[event.adapter] = event
        elif type(event) is AdapterRemoved:
            self._pinned.pop(event.adapter, None)
            self._loaded.pop(event.adapter, None)
        elif type(event) is StepFailed:  # the runner starts anew, with nothing in any slot
            self._pinned = {name: replace(pin, slot=None) for name, pin in self._pinned.items()}
            self._loaded.clear()

    @property
    def events(self) -> list[Event]:
        return [*self._pinned.values(), *self._loaded.values()]


class Recorder:
    """An observer that remembers.

    With `max_steps`, older steps are let go; of requests that still run, the arrival and the admission stay,
    and of adapters, who is pinned.
    """

    def __init__(self, max_steps: int | None = None) -> None:
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"max_steps is {max_steps}: keep at least 1 step, or None for all")
        self.max_steps = max_steps
        self._most_steps = math.inf if max_steps is None else max_steps
        self._most_events = EVENTS_PER_STEP * (self._most_steps + 1)
        self.num_events = 0  # seen, kept or not
        self._lock = threading.Lock()  # one thread steps, another may read
        self._events: deque[Event] = deque()
        self._num_steps = 0  # among the events kept
        self._dropped_steps = 0
        self._start: EngineStarted | None = None
        self._arrivals: dict[str, RequestArrived] = {}  # let go from the ring, of requests that may still run
        self._readies: dict[str, RequestReady] = {}
        self._admissions: dict[str, RequestAdmitted] = {}
        self._pins = _Pins()

    def __call__(self, event: Event) -> None:
        with self._lock:
            self.num_events += 1
            self._events.append(event)
            if type(event) is StepPlanned:
                self._num_steps += 1
            while self._num_steps > self._most_steps or len(self._events) > self._most_events:
                self._let_go(self._events.popleft())

    def snapshot(self) -> Recording:
        """Everything kept, oldest first."""
        with self._lock:
            start = [self._start] if self._start else []
            early: list[Event] = [
                *start,
                *self._pins.events,
                *self._arrivals.values(),
                *self._readies.values(),
                *self._admissions.values(),
            ]
            return Recording(early + list(self._events), self._dropped_steps)

    def open_requests(self) -> list[Event]:
        """How the engine started, who is pinned, and how requests that have not ended came in, for another
        recorder."""
        started: list[Event] = []
        pins = _Pins()
        known: dict[str, list[Event]] = {}  # an id used again is another request
        for event in self.snapshot().events:
            if type(event) is EngineStarted:
                started.append(event)
            elif type(event) is RequestArrived:
                known[event.request_id] = [event]
            elif type(event) is RequestReady or (type(event) is RequestAdmitted and not event.resumed):
                known.setdefault(event.request_id, []).append(event)
            elif type(event) is RequestFinished:
                known.pop(event.request_id, None)
            else:
                pins.take(event)
        return [*started, *pins.events, *chain.from_iterable(known.values())]

    def _let_go(self, event: Event) -> None:
        if type(event) is StepPlanned:
            self._num_steps -= 1
            self._dropped_steps += 1
        elif type(event) is EngineStarted:
            self._start = event
        elif type(event) is RequestArrived:
            self._arrivals[event.request_id] = event
        elif type(event) is RequestAdmitted and not event.resumed:
            self._admissions[event.request_id] = event
        elif type(event) is RequestReady:
            self._readies[event.request_id] = event
        elif type(event) is RequestFinished:
            self._arrivals.pop(event.request_id, None)
            self._readies.pop(event.request_id, None)
            self._admissions.pop(event.request_id, None)
        else:
            self._pins.take(event)
