"""The next step before anybody takes it: planned on a copy of the books, so that the run notices nothing.

A plan moves requests, takes blocks and forgets what they held, and none of that can be taken back without
changing the run; so it is done to a copy, which is then let go. What the copy's plan and the copy's log of
blocks say is what the next plan will be, as long as nobody arrives, leaves or edits. Decides nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from workbench.cache.kv_events import KVEvent
from workbench.engine.books import Books
from workbench.engine.flight import Flight
from workbench.engine.planner import Planner
from workbench.engine.request import Request


class Share(NamedTuple):
    """What one request gets of a step."""

    request_id: str
    start: int  # position of the first token computed
    tokens: int  # computed
    decode: int  # of them, neither prompt nor computed before
    num_tokens: int  # that it has: prompt and output
    samples: bool  # it gets a new token
    admitted: bool  # it comes from the queue
    cached: int  # tokens found in the prefix cache, where it is admitted
    blocks: int  # KV blocks taken for it, the cached ones aside


class Waiting(NamedTuple):
    """A request in the queue."""

    request_id: str
    num_tokens: int  # prompt and, after a preemption, what it had generated
    priority: int
    preempted: bool  # it ran before
    ready: bool = True  # False: what it needs, its grammar, is not there yet


@dataclass(frozen=True, slots=True)
class Preview:
    """One step as it will be."""

    index: int  # of the engine's steps; -1 when there is nothing to do
    budget: int  # tokens the step may hold
    shares: tuple[Share, ...] = ()  # in running order
    preempted: tuple[str, ...] = ()  # ids of requests that give their blocks back for it
    queue: tuple[Waiting, ...] = ()  # who waits now, first to be admitted first
    waiting: tuple[Waiting, ...] = ()  # who will wait afterwards
    evicted: int = 0  # blocks whose cached content is forgotten for it
    blocks_free: int = 0  # afterwards, cached ones among them
    num_blocks: int = 0

    @property
    def num_scheduled_tokens(self) -> dict[str, int]:
        """Request id -> tokens computed, as in `Step`."""
        return {share.request_id: share.tokens for share in self.shares}

    @property
    def total_num_scheduled_tokens(self) -> int:
        return sum(share.tokens for share in self.shares)


def waiting_in(books: Books) -> tuple[Waiting, ...]:
    """The queue, first to be admitted first."""
    return tuple(
        Waiting(
            r.request_id,
            len(r.token_ids),
            r.priority,
            r.num_preemptions > 0,
            r.need is None or r.need.ready,
        )
        for r in books.waiting
    )


def preview(books: Books, planner: Planner) -> Preview:
    """What `planner` would plan next. Nothing may be in flight: what it brings is not known yet."""
    assert not books.flights, "a step is in flight: commit it before the next one is looked at"
    trial = books.copy()
    log = trial.cache.watch(True)
    assert log is not None
    copies = dict(zip(books.running.requests, trial.running.requests, strict=True))
    trial.wake()
    draft = planner.copy(trial, copies).plan()
    changes, pool = log.take(), trial.cache.pool
    flight = None if draft is None else trial.flights[-1]
    return Preview(
        index=-1 if flight is None else flight.plan.index,
        budget=books.limits.budget,
        shares=() if flight is None else _shares(trial, flight, changes),
        preempted=() if flight is None else flight.preempted,
        queue=waiting_in(books),
        waiting=waiting_in(trial),
        evicted=sum(len(change.blocks) for change in changes if change.kind == "evicted"),
        blocks_free=pool.num_free,
        num_blocks=pool.num_blocks,
    )


def _shares(books: Books, flight: Flight, changes: Iterable[KVEvent]) -> tuple[Share, ...]:
    plan, holders = flight.plan, dict(zip(flight.rows.tolist(), flight.requests, strict=True))
    taken, admitted = _taken(changes), {added.row for added in plan.added}
    columns = (plan.rows, plan.starts, plan.counts, plan.samples)
    lines = zip(*(column.tolist() for column in columns), strict=True)
    shares = []
    for row, start, count, samples in lines:
        request = holders[row]
        shares.append(
            Share(
                request_id=request.request_id,
                start=start,
                tokens=count,
                decode=_decode(request, start, start + count),
                num_tokens=books.running.known_at(books.running.place_of(request)),
                samples=samples,
                admitted=row in admitted,
                cached=start if row in admitted else 0,
                blocks=taken[request.request_id],
            )
        )
    return tuple(shares)


def _decode(request: Request, start: int, end: int) -> int:
    # [start, prompt)  prefill;  [prompt, reached)  computed before a preemption;  the rest is decode
    return max(0, end - max(start, request.num_prompt_tokens, request.num_reached))


def _taken(changes: Iterable[KVEvent]) -> Counter[str]:
    """Blocks reserved, by request; in an event there is a name for each block, or one for all."""
    taken: Counter[str] = Counter()
    for change in changes:
        if change.kind == "reserved":
            names = change.names if len(change.names) > 1 else change.names * len(change.blocks)
            taken.update(names)
    return taken
