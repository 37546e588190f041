"""What became of a step's drafts: the books corrected by it. Knows no drafter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from workbench.engine.books import Books, Ending
from workbench.engine.flight import Flight
from workbench.engine.plan import Ints
from workbench.engine.request import Request
from workbench.engine.result import StepResult


class Behind(NamedTuple):
    """Tokens that requests took behind drafts that stand, in order."""

    requests: list[Request]
    lines: list[int]  # of the result


@dataclass(slots=True)
class Line:
    """One request's drafts."""

    number: int  # of the plan's drafts' lines
    request: Request
    drafted: int
    accepted: int  # by the model
    extra: int  # line of the result: what was sampled behind its first draft
    taken: int = 0  # tokens the request took behind drafts: as many of these became output


class Verified:
    """The drafts of the requests that still run; a plan's bounds come down to what stands.

    ::

        planned    [0 ..... known)[draft ........ draft)           computed; length is 1 more
        verified   [0 ..... known)[accepted)                       computed; the new token lies behind
    """

    def __init__(self, books: Books, flight: Flight, result: StepResult) -> None:
        drafts, plan = flight.plan.drafts, flight.plan
        assert drafts is not None, "nothing was to be verified"
        assert result.accepted is not None, "drafts were planned, and the runner did not verify them"
        self._books = books
        self._accepted = np.zeros(len(drafts.lines), np.int32)
        holders = dict(zip(flight.rows.tolist(), flight.requests, strict=True))
        rows = plan.rows[drafts.lines]
        columns = zip(rows.tolist(), drafts.counts.tolist(), result.accepted.tolist(), strict=True)
        extra = len(result.rows)
        self.lines: list[Line] = []
        for number, (row, drafted, accepted) in enumerate(columns):
            if holders[row] not in flight.dropped:
                self.lines.append(Line(number, holders[row], drafted, accepted, extra))
            extra += drafted
        kept = [line.number for line in self.lines] if flight.dropped else slice(None)
        places = books.running.places_of_rows(rows[kept])
        books.running.correct(places, drafts.counts[kept], result.accepted[kept])

    def settle(self, ending: Sequence[Ending]) -> Ints:
        """Count them, give back blocks that hold none but rejected ones; [s]: those that became output."""
        ended, counts = {each.request for each in ending}, self._books.counts
        for line in self.lines:
            self._accepted[line.number] = line.taken
            line.request.num_accepted += line.taken
            line.request.num_rejected += line.drafted - line.taken
            counts.drafts += 1
            counts.draft_tokens += line.drafted
            counts.accepted_tokens += line.taken
            counts.accepted_at += [0] * (line.drafted - len(counts.accepted_at))
            for place in range(line.taken):
                counts.accepted_at[place] += 1
            if line.request not in ended:
                self._give_back(line.request)
        return self._accepted

    def _give_back(self, request: Request) -> None:
        running, size = self._books.running, self._books.cache.block_size
        place = running.place_of(request)
        computed = int(running.computed[place])
        capacity = -(-computed // size) * size
        if capacity < running.capacity[place]:
            self._books.cache.shrink(request.tables, computed)
            running.capacity[place] = capacity
