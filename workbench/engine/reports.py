"""What observers see of a step: the events of a plan and of a commit. Built only while somebody observes.

The arrays in them are the engine's own: from here on nobody writes to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from workbench.engine.books import Books
from workbench.engine.events import Followed, StepCommitted, StepPlanned
from workbench.engine.flight import Flight
from workbench.engine.plan import Ints, StepPlan
from workbench.engine.request import Request
from workbench.engine.result import StepResult


def step_planned(books: Books, flight: Flight, recomputed: int, began: float) -> StepPlanned:
    """The newest plan, with how things stand around it."""
    for array in _arrays_of_plan(flight.plan):
        array.flags.writeable = False
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
    running, rows = books.running, flight.plan.rows
    if len(rows) == len(flight.requests):  # everybody, in running order
        return running.request_ids
    requests = running.requests
    return tuple([requests[place].request_id for place in running.places_of_rows(rows).tolist()])


def light(result: StepResult) -> StepResult:
    """What observers keep of a result."""
    if result.scores or result.forced or result.proposed:
        # What was taken of the forced is told apart, and what was proposed by the plan that verifies it.
        result = result._replace(scores=(), forced=(), proposed=None)
    if result.logprobs is None or result.logprobs.whole is None:
        return result
    return result._replace(logprobs=result.logprobs.without_whole)


def step_committed(
    books: Books,
    flight: Flight,
    result: StepResult,
    requests: Sequence[Request],
    kept: list[int] | None,
    followed: tuple[Followed, ...],
    accepted: Ints | None,
    began: float,
) -> StepCommitted:
    """A result as it was applied. `kept`: lines of the result that somebody took; None: all."""
    result = light(result)
    for array in _arrays_of_result(result):
        array.flags.writeable = False
    now, running = books.clock(), books.running
    everybody = requests is running.requests  # the same list as long as nobody comes or goes
    if everybody:
        request_ids, taken = running.request_ids, running.places
    else:
        request_ids = tuple([request.request_id for request in requests])
        taken = np.array(range(len(requests)) if kept is None else kept, np.int32)
        taken.flags.writeable = False
    return StepCommitted(
        at=now,
        result=result,
        request_ids=request_ids,
        taken=taken,
        overshoot=flight.overshoot,
        commit_s=now - began,
        followed=followed,
        accepted=accepted,
    )


def _arrays_of_plan(plan: StepPlan) -> Iterator[npt.NDArray[Any]]:
    yield from (plan.rows, plan.starts, plan.counts, plan.samples, plan.removed, *(plan.drafts or ()))
    yield from plan.asks or ()
    for added in plan.added:
        yield from (added.token_ids, *added.blocks)
    for grown in plan.grown:
        yield from grown


def _arrays_of_result(result: StepResult) -> Iterator[npt.NDArray[Any]]:
    yield from (result.rows, result.token_ids)
    if result.masked is not None:
        yield result.masked
    if result.accepted is not None:
        yield result.accepted
    for column in result.logprobs or ():
        if isinstance(column, np.ndarray):
            yield column
        elif column is not None:
            yield from column
