"""What observers see of a step: the events of a plan and of a commit. Built only while somebody observes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.engine.books import Books
from workbench.engine.events import StepCommitted, StepPlanned
from workbench.engine.flight import Flight
from workbench.engine.plan import Ints
from workbench.engine.request import Request
from workbench.engine.result import StepResult


def step_planned(books: Books, flight: Flight, recomputed: int, began: float) -> StepPlanned:
    """The newest plan, with how things stand around it."""
    now, pool = books.clock(), books.cache.pool
    return StepPlanned(
        at=now,
        plan=flight.plan,
        request_ids=_planned_ids(books, flight),
        running=books.running.count,
        waiting=len(books.waiting),
        blocks_free=pool.num_free,
        blocks_held=pool.num_held,
        blocks_cached=pool.num_cached,
        recomputed=recomputed,
        plan_s=now - began,
    )


def _planned_ids(books: Books, flight: Flight) -> tuple[str, ...]:
    if len(flight.plan.rows) == len(flight.requests):  # everybody, in running order
        return books.running.request_ids
    names = flight.names
    return tuple([names[row] for row in flight.plan.rows.tolist()])


def light(result: StepResult) -> StepResult:
    """What observers keep of a result."""
    if result.scores:
        result = result._replace(scores=())
    if result.logprobs is None or result.logprobs.whole is None:
        return result
    return result._replace(logprobs=result.logprobs.without_whole)


def step_committed(
    books: Books,
    flight: Flight,
    result: StepResult,
    requests: Sequence[Request],
    token_ids: Ints,
    kept: list[int] | None,
    began: float,
) -> StepCommitted:
    """A result as it was applied. `kept`: lines of the result that somebody took; None: all."""
    now, running = books.clock(), books.running
    everybody = requests is running.requests  # the same list as long as nobody comes or goes
    positions = (flight.plan.starts + flight.plan.counts)[flight.plan.samples]
    return StepCommitted(
        at=now,
        result=light(result),
        request_ids=running.request_ids if everybody else tuple([request.request_id for request in requests]),
        token_ids=token_ids,
        positions=positions if kept is None else positions[kept],
        taken=np.arange(len(requests), dtype=np.int32) if kept is None else np.array(kept, np.int32),
        overshoot=flight.overshoot,
        commit_s=now - began,
    )
