"""Drafts of a recorded run, proposed again where they were. Drafts nothing of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from workbench.engine.drafting import Proposals
from workbench.engine.events import StepPlanned
from workbench.engine.plan import Ints, StepPlan
from workbench.engine.request import Request
from workbench.engine.result import StepResult
from workbench.engine.running import Longs, Running


class Drafted(NamedTuple):
    """What was proposed for one request."""

    request_id: str
    length: int  # tokens it had
    token_ids: list[int]


def drafts_of(event: StepPlanned) -> Iterator[Drafted]:
    """What a step verified."""
    drafts, plan = event.plan.drafts, event.plan
    if drafts is None:
        return
    ends, begin = (plan.starts + plan.counts)[drafts.lines] - drafts.counts, 0
    for line, count, length in zip(drafts.lines.tolist(), drafts.counts.tolist(), ends.tolist(), strict=True):
        yield Drafted(event.request_ids[line], length, drafts.token_ids[begin : begin + count].tolist())
        begin += count


class Redrafting:
    """Who drafts in a replay."""

    def __init__(self, drafted: Callable[[Request, int], list[int]]) -> None:
        """`drafted`: what was proposed for a request of some length."""
        self._drafted = drafted

    def copy(self) -> Redrafting:
        return self

    def enter(self, request: Request) -> None:
        """What is proposed depends on the request alone."""

    def leave(self, request: Request) -> None:
        """Nothing is kept of it."""

    def waits(self, running: Running) -> bool:
        places = zip(running.requests, running.length.tolist(), strict=True)
        return any(self._drafted(request, length) for request, length in places)

    def propose(self, running: Running, most: Longs) -> Proposals | None:
        places = zip(running.requests, running.length.tolist(), most.tolist(), strict=True)
        found = [self._drafted(request, length)[:count] for request, length, count in places]
        counts = np.array([len(drafts) for drafts in found], np.int64)
        if not counts.any():
            return None
        return Proposals(counts, np.array([token_id for drafts in found for token_id in drafts], np.int32))

    def asks(self, running: Running) -> Longs | None:
        """What the runner found then is proposed from the recording."""
        return None

    def meanwhile(self, running: Running) -> None:
        """There is nothing to think about."""

    def committed(self, plan: StepPlan, result: StepResult, accepted: Ints | None) -> None:
        """What was drafted next has been recorded."""
