"""What each request did over consecutive steps: prefill, decode, or work for nobody. Data for the Gantt
chart.

Knows the tables; draws nothing. It reads lines once, however often the tables have grown since.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from workbench.trace.pictures.namesakes import NOBODY, Namesakes
from workbench.trace.schema import Table

Longs = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

KINDS = ("prefill", "decode", "dropped")  # a stretch's kind is a place here


class Stretches(NamedTuple):
    """Columns with a line for each stretch, ordered by its first step."""

    request: Longs  # place in the requests table
    kind: Longs  # place in KINDS
    begin: Longs  # place in the steps table of its first step
    end: Longs  # of its last
    tokens: Longs  # computed in it
    resumed: Bools  # its request was preempted before

    def and_then(self, added: Stretches) -> Stretches:
        """These and those, as new arrays."""
        columns: list[Any] = [np.concatenate(both) for both in zip(self, added, strict=True)]
        return Stretches(*columns)

    @classmethod
    def none(cls) -> Stretches:
        """Nobody has done anything."""
        numbers = np.empty(0, np.int64)
        return cls(numbers, numbers, numbers, numbers, numbers, np.empty(0, np.bool_))


class _Lines(NamedTuple):
    """Lines of step_requests, sorted by request and then by step."""

    request: Longs
    kind: Longs
    place: Longs
    start: Longs
    end: Longs
    tokens: Longs
    cached: Longs


class Work:
    """Stretches of a run that goes on: `take` reads the lines that are new."""

    def __init__(self) -> None:
        self.stretches = Stretches.none()
        self._read = 0  # lines of step_requests
        self._names = Namesakes()
        self._latest: Longs = np.empty(0, np.int64)  # by request: its last stretch so far
        self._reached: Longs = np.empty(0, np.int64)  # by request: position after its last line

    def take(self, requests: Table, steps: Table, chunks: Table) -> Stretches:
        """All stretches by now."""
        new = {name: column[self._read :] for name, column in chunks.items()}
        self._read = len(chunks["step"])
        more = len(requests["request_id"]) - len(self._latest)
        self._latest = np.concatenate([self._latest, np.full(more, NOBODY)])
        self._reached = np.concatenate([self._reached, np.zeros(more, np.int64)])
        self._names.take(requests)
        lines = _lines(new, self._names, steps)
        if len(lines.request):
            self._add(lines)
        return self.stretches

    def _add(self, lines: _Lines) -> None:
        first = np.diff(lines.request, prepend=NOBODY) != 0  # of its request among these
        latest, known = self._latest[lines.request], self.stretches
        was_there = first & (latest >= 0)
        before = np.roll(lines.end, 1)
        before[first] = self._reached[lines.request[first]]
        resumed = (~first | (latest >= 0)) & ((lines.start < before) | (lines.cached > 0))
        kind_before, place_before = np.roll(lines.kind, 1), np.roll(lines.place, 1)
        kind_before[was_there] = known.kind[latest[was_there]]
        place_before[was_there] = known.end[latest[was_there]]
        goes_on = (lines.kind == kind_before) & (lines.place == place_before + 1)
        goes_on &= ~resumed & (~first | was_there)
        self._reached[lines.request] = lines.end  # a request's last line wins
        self._join(lines, goes_on, first, resumed)

    def _join(self, lines: _Lines, goes_on: Bools, first: Bools, resumed: Bools) -> None:
        """Lines that go on with a known stretch lengthen it; the others make new ones, in order of time."""
        heads = np.flatnonzero(~goes_on | first)  # of what is one stretch among these lines
        ends = np.append(heads[1:], len(first)) - 1
        tokens = np.add.reduceat(lines.tokens, heads)
        old = goes_on[heads]
        lengthened, until, more = self._latest[lines.request[heads[old]]], lines.place[ends[old]], tokens[old]
        heads, ends, tokens = heads[~old], ends[~old], tokens[~old]
        order = np.argsort(lines.place[heads], kind="stable")
        heads, ends, tokens = heads[order], ends[order], tokens[order]
        columns = (lines.request[heads], lines.kind[heads], lines.place[heads], lines.place[ends], tokens)
        added = Stretches(*columns, resumed[heads])
        self._latest[added.request] = len(self.stretches.request) + np.arange(len(heads))
        joined = self.stretches.and_then(added)
        joined.end[lengthened] = until
        joined.tokens[lengthened] += more
        self.stretches = joined


def _lines(new: Table, names: Namesakes, steps: Table) -> _Lines:
    places = np.searchsorted(steps["step"], new["step"])
    request = names.places(new["request_id"], steps["planned_s"][places])
    kind = np.where(new["dropped"], 2, np.where(new["prefill"] > 0, 0, 1))
    order = np.argsort(request, kind="stable")
    order = order[request[order] != NOBODY]
    start, tokens = new["start"], new["scheduled"]
    columns = (request, kind, places, start, start + tokens, tokens, new["cached"])
    return _Lines(*(column[order] for column in columns))
