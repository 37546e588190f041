"""Where every request is between its arrival and its end, and the moves from one place to the next.

::

    add -> aside -> wake -> waiting -> (planner) -> running -> retire -> ended
    add ----------------------^ ^---- leave <- preempt --'

Aside stands who needs something that is not ready.

Decides nothing: the planner says who gets what, the scheduler who is done.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from workbench.cache.kv_events import KVEventLog
from workbench.cache.manager import CacheManager
from workbench.engine.adapter_turns import Adapters, AdapterTurns
from workbench.engine.clock import Clock
from workbench.engine.events import (
    BlocksChanged,
    BudgetChanged,
    Emitter,
    FinishReason,
    QueueReordered,
    RequestArrived,
    RequestFinished,
    RequestPreempted,
    RequestReady,
)
from workbench.engine.flight import Flight
from workbench.engine.known_scores import KnownScores
from workbench.engine.plan import Ints
from workbench.engine.policies import Policy
from workbench.engine.queue import WaitingQueue
from workbench.engine.request import Request, State
from workbench.engine.running import Running

logger = logging.getLogger(__name__)

NOBODY: Ints = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a step and the batch may hold."""

    budget: int  # max_num_batched_tokens
    max_rows: int  # max_num_seqs
    max_length: int  # max_model_len
    long_prefill: int = 0  # most tokens one request gets in a step; 0: no limit


@dataclass(slots=True)
class Counts:
    """What happened since the start."""

    prefix_queries: int = 0  # tokens looked up in the prefix cache, by requests admitted for the first time
    prefix_hits: int = 0  # tokens they found there
    prompt_tokens: int = 0  # of admitted requests
    generation_tokens: int = 0
    preemptions: int = 0
    finished: dict[FinishReason, int] = field(default_factory=dict)
    drafts: int = 0  # times a request's drafts were verified
    draft_tokens: int = 0
    accepted_tokens: int = 0  # of them, those that became output
    accepted_at: list[int] = field(default_factory=list)  # of them, by place: first draft, second ...


class Ending(NamedTuple):
    """A request that is done, and why."""

    request: Request
    reason: FinishReason
    stop_reason: int | str | None


class Books:
    """The requests of one engine, with the blocks and rows they hold."""

    def __init__(
        self,
        limits: Limits,
        cache: CacheManager,
        policy: Policy,
        clock: Clock,
        emit: Emitter,
        adapters: Adapters | None = None,
    ) -> None:
        self.limits = limits
        self.cache = cache
        self.policy = policy
        self.clock = clock
        self.emit = emit
        self.waiting = WaitingQueue(policy)
        self.running = Running(limits.max_rows, limits.max_length)
        self.flights: deque[Flight] = deque()  # oldest first
        self.counts = Counts()
        self.known_scores = KnownScores(cache)
        self.adapters = AdapterTurns(adapters, clock, emit)
        self.turned_away: list[Request] = []  # ended while a plan was made, and nobody was told yet
        self.removed: list[int] = []  # rows emptied since the last plan
        self.index = 0  # of the next plan
        self._arrivals = 0
        self._kv_events: KVEventLog | None = None  # while somebody observes
        emit.on_switch(self._watch_blocks)

    def copy(self) -> Books:
        """The same books, over copies of everything that is ever written to; nobody hears of those."""
        other = copy(self)
        other.emit, other.cache = Emitter(), self.cache.copy()
        other.waiting, other.running = self.waiting.copy(), self.running.copy()
        other.flights, other.removed = self.flights.copy(), list(self.removed)
        other.counts = replace(self.counts, finished=dict(self.counts.finished))
        other.adapters, other.turned_away = self.adapters.copy(other.emit), []
        other.known_scores, other._kv_events = self.known_scores.copy(other.cache), None
        return other

    def _watch_blocks(self, on: bool) -> None:
        self._kv_events = self.cache.watch(on)

    def next_index(self) -> int:
        """Of the plan that is being made."""
        self.index += 1
        return self.index - 1

    def take_removed(self) -> Ints:
        """Rows emptied since the last plan, which tells of them now."""
        if not self.removed:
            return NOBODY
        removed = np.array(self.removed, np.int32)
        self.removed.clear()
        return removed

    def add(self, request: Request) -> None:
        """Queue a request that has been checked against the limits."""
        self.adapters.check_known(request)
        request.arrival, self._arrivals = self._arrivals, self._arrivals + 1
        need = request.need
        aside = need is not None and (not need.ready or need.failure is not None)
        if aside:
            self.waiting.put_aside(request)
        else:
            self.waiting.push(request)
        if self.emit:
            # The request's own, and from now on shown to observers.
            request.prompt_token_ids.flags.writeable = False
            self.emit(
                RequestArrived(
                    request.times.queued,
                    request.request_id,
                    request.prompt_token_ids,
                    request.max_length - request.num_prompt_tokens,
                    request.priority,
                    request.tables.root,
                    aside,
                    self.adapters.name_of(request),
                )
            )

    def reorder(self, order: Sequence[Request]) -> bool:
        """Waiting requests trade their places for that order; False where the policy looks elsewhere."""
        done = self.waiting.reorder(order)
        if done and self.emit:
            self.emit(QueueReordered(self.clock(), tuple([request.request_id for request in order])))
        return done

    def set_budget(self, budget: int) -> None:
        """Tokens of a step, for those that are planned from here on."""
        self.limits = replace(self.limits, budget=budget)
        if self.emit:
            self.emit(BudgetChanged(self.clock(), budget))

    def wake(self) -> list[Request]:
        """Requests whose need is met may be admitted from now on; those whose need failed end: these."""
        failed = []
        for request in self.waiting.wake():
            if self.emit:
                self.emit(RequestReady(self.clock(), request.request_id))
            if request.need is not None and (failure := request.need.failure) is not None:
                self.end(request, "error", failure)
                self.waiting.forget(request)
                failed.append(request)
        return failed

    def abort(self, requests: Iterable[Request], reason: FinishReason = "abort") -> None:
        """End requests wherever they are; those that have ended are left alone."""
        open_requests = [request for request in requests if not request.finished]
        for request in open_requests:
            if request.state is State.RUNNING:
                continue
            queued = request.state is State.WAITING
            self.end(request, reason, None)
            if queued:
                self.waiting.forget(request)
        self.retire([Ending(r, reason, None) for r in open_requests if r.state is State.RUNNING])

    def preempt(self, place: int) -> Request:
        """Take a request's blocks; what is in flight for it is dropped. It leaves its row with `leave`."""
        request = self.running.requests[place]
        in_flight = self.drop(request)
        computed = int(self.running.computed[place]) - in_flight
        request.num_reached = max(request.num_reached, computed)
        request.num_preemptions += 1
        self.counts.preemptions += 1
        self.cache.release(request.tables, "preempted")
        if self.emit:
            self.emit(RequestPreempted(self.clock(), self.index, request.request_id, computed, in_flight))
        return request

    def leave(self, places: list[int]) -> None:
        """Preempted requests leave their rows and wait again."""
        leaving = [self.running.requests[place] for place in places]
        keys = [self.policy.key(request) for request in leaving]  # if it raises, then before they are nowhere
        self.running.remove(places)
        for request, key in zip(leaving, keys, strict=True):
            self.adapters.release(request)
            self.removed.append(request.row)
            self.waiting.push_with(request, key)

    def retire(self, ending: Sequence[Ending]) -> None:
        """Running requests end: they leave their rows and blocks, and whatever is in flight for them."""
        if not ending:
            return
        places = []
        for request, reason, _ in ending:
            place = self.running.place_of(request)
            places.append(place)
            self.drop(request)
            written = min(int(self.running.computed[place]), self.running.known_at(place))
            keys = self.cache.register(request.tables, self.running.source(request), written)
            if self.flights:  # the newest step may still fail, and it is among those that wrote these blocks
                self.flights[-1].registered += keys
            self.cache.release(request.tables, reason)
        self.running.remove(places)
        for request, reason, stop_reason in ending:
            self.adapters.release(request)
            self.removed.append(request.row)
            self.end(request, reason, stop_reason)
        self.tell_blocks(self.index)

    def tell_blocks(self, step: int) -> None:
        """Observers hear what happened to blocks; `step` is the first plan that counts it."""
        changed = self._kv_events  # another thread's last observer may leave meanwhile
        if changed:
            self.emit(BlocksChanged(self.clock(), step, self.cache.block_size, changed.take()))

    def end_admission(self) -> None:
        """The plan being made admits no more."""
        self.waiting.put_back()
        self.adapters.end()

    def take_back(self, requests: Iterable[Request]) -> None:
        """Requests that were about to be admitted wait again."""
        for request in requests:
            self.cache.release(request.tables, "preempted")
            self.adapters.release(request)
            self.waiting.push(request)

    def next_waiting(self) -> Request | None:
        """The first one whose adapter lets it into the plan being made; the others are passed over."""
        while (request := self.waiting.peek()) is not None:
            if request.adapter is None or self._lets_in(request):
                return request
            self.waiting.pass_over()
        return None

    def _lets_in(self, request: Request) -> bool:
        """Whether its adapter lets a request in; one whose adapter can no longer be read ends."""
        try:
            return self.adapters.admits(request, self.index)
        except (OSError, ValueError) as error:
            logger.error("%s ends: %s", request, error)
            self.end(request, "error", str(error))
            self.waiting.forget(request)
            self.turned_away.append(request)
            return False

    def drop(self, request: Request) -> int:
        """Whatever is in flight for the request will be ignored; how many tokens that is."""
        tokens = 0
        for flight in self.flights:
            if flight.plan.index >= request.admitted_at and request not in flight.dropped:
                tokens += flight.drop(request)
        return tokens

    def end(self, request: Request, reason: FinishReason, stop_reason: int | str | None) -> None:
        request.state = State.FINISHED
        request.finish_reason = reason
        request.stop_reason = stop_reason
        request.need = None
        self.counts.finished[reason] = self.counts.finished.get(reason, 0) + 1
        if self.emit:
            self.emit(
                RequestFinished(
                    self.clock(),
                    request.request_id,
                    reason,
                    stop_reason,
                    len(request.token_ids) - request.num_prompt_tokens,
                    request.num_preemptions,
                )
            )

    def tokens_of(self, request: Request) -> Ints:
        """The tokens a request has so far; a view while it runs."""
        if request.state is State.RUNNING:
            return self.running.tokens_at(self.running.place_of(request))
        return request.token_ids

    def check(self) -> None:
        """The laws that hold after every step; raises AssertionError where one is broken."""
        self.adapters.check()
        self.cache.check(request.tables for request in self.running.requests)
        running = self.running
        assert (running.computed <= running.length).all(), "a request has computed more tokens than it has"
        assert (running.length <= running.end).all(), "a request is longer than it may become"
        assert (running.computed <= running.capacity).all(), "a request has written past its blocks"
