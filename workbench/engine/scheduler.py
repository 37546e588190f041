"""Decides which tokens run next, and applies what came back. Knows nothing of tensors, text or time sources.

There is no prefill and no decode phase: every request has `computed` tokens chasing `length`, and a step
hands out a fixed budget, running requests first, then waiting ones (the unified scheduler of vLLM V1).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from workbench.cache.manager import CacheManager, Hit
from workbench.engine.clock import Clock
from workbench.engine.events import (
    Emitter,
    FinishReason,
    RequestAdmitted,
    RequestArrived,
    RequestFinished,
    RequestPreempted,
    StepCommitted,
    StepFailed,
    StepPlanned,
)
from workbench.engine.plan import Addition, Growth, Ints, StepPlan
from workbench.engine.policies import Policy
from workbench.engine.queue import WaitingQueue
from workbench.engine.request import Request, State
from workbench.engine.result import StepResult
from workbench.engine.running import Admission, Longs, Running

NOBODY: Ints = np.empty(0, np.int32)
NO_GROWTH = Growth(NOBODY, NOBODY, NOBODY)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a step and the batch may hold."""

    budget: int  # max_num_batched_tokens
    max_rows: int  # max_num_seqs
    max_length: int  # max_model_len
    long_prefill: int = 0  # most tokens one request gets in a step; 0: no limit


@dataclass(slots=True)
class Flight:
    """A plan on its way: made, and not committed yet."""

    plan: StepPlan
    rows: Ints  # every running request's row when it was planned, in running order
    requests: list[Request]  # and the requests
    places: Longs | None  # of those that sample, in that order; None: all
    version: int  # of the membership, then
    registered: list[bytes]  # keys made findable on the strength of this plan
    preempted: tuple[str, ...]  # ids of the requests it preempted
    dropped: set[Request] = field(default_factory=set)  # ended or preempted since

    def sampling(self) -> list[Request]:
        if self.places is None:
            return self.requests
        return [self.requests[place] for place in self.places]

    def tokens_of(self, request: Request) -> int:
        """Tokens this plan computes for the request, which still holds its row."""
        return int(self.plan.counts[self.plan.rows == request.row].sum())

    @property
    def names(self) -> dict[int, str]:
        """Batch row -> id of the request that held it when it was planned."""
        return {row: r.request_id for row, r in zip(self.rows.tolist(), self.requests, strict=True)}


@dataclass(frozen=True, slots=True)
class Commit:
    """What a result, or a failure, did."""

    flight: Flight
    requests: Sequence[Request]  # who took a token
    streamed: Sequence[Request]  # those of them somebody listens to
    finished: Sequence[Request]


@dataclass(slots=True)
class Counts:
    """What happened since the start."""

    prefix_queries: int = 0  # tokens looked up in the prefix cache
    prefix_hits: int = 0  # tokens found there
    prompt_tokens: int = 0  # of admitted requests
    generation_tokens: int = 0
    preemptions: int = 0
    finished: dict[FinishReason, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Draft:
    """A plan in the making; lives only inside `Scheduler.plan`."""

    budget: int
    grown: list[list[tuple[int, int, int]]]  # per group: (row, place in its table, block)
    registered: list[bytes] = field(default_factory=list)
    preempted: set[int] = field(default_factory=set)  # places
    names: list[str] = field(default_factory=list)  # ids of the preempted
    recomputed: int = 0

    def forget_growth(self, row: int) -> None:
        for grown in self.grown:
            grown[:] = [growth for growth in grown if growth[0] != row]


class Scheduler:
    """Owns the requests between arrival and end. `plan` and `commit` alternate, at most a few plans ahead."""

    def __init__(
        self, limits: Limits, cache: CacheManager, policy: Policy, clock: Clock, emit: Emitter
    ) -> None:
        self.limits = limits
        self.cache = cache
        self.policy = policy
        self.waiting = WaitingQueue(policy)
        self.running = Running(limits.max_rows, limits.max_length)
        self.flights: deque[Flight] = deque()  # oldest first
        self.counts = Counts()
        self._clock = clock
        self._emit = emit
        self._removed: list[int] = []  # rows emptied since the last plan
        self._index = 0
        self._arrivals = 0
        self._steady = 0  # plans ahead in which everybody wants just the token it sampled last
        self._ones: Longs = np.ones(limits.max_rows, np.int64)
        self._one_each: Ints = np.ones(limits.max_rows, np.int32)
        self._all_sample = np.ones(limits.max_rows, bool)

    # --- requests come and go -------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request that has been checked against the limits."""
        request.arrival, self._arrivals = self._arrivals, self._arrivals + 1
        self.waiting.push(request)
        if self._emit:
            self._emit(
                RequestArrived(
                    request.times.queued,
                    request.request_id,
                    request.prompt_token_ids,
                    request.max_length - request.num_prompt_tokens,
                    request.priority,
                )
            )

    def abort(
        self, requests: Iterable[Request], reason: FinishReason = "abort", error: str | None = None
    ) -> None:
        """End requests wherever they are; those that have ended are left alone."""
        open_requests = [request for request in requests if not request.finished]
        for request in open_requests:
            request.error = error
            if request.state is State.WAITING:
                self._end(request, reason, None)
                self.waiting.forget(request)
        self._retire([(r, reason, None) for r in open_requests if r.state is State.RUNNING])

    @property
    def has_work(self) -> bool:
        """Somebody runs, waits, or is in flight."""
        return bool(self.running.count or len(self.waiting) or self.flights)

    # --- plan -----------------------------------------------------------------------------------------

    def plan(self) -> StepPlan | None:
        """The next step, or None when nobody wants a token before a step in flight comes back."""
        began = self._clock() if self._emit else 0.0
        running, draft = self.running, _Draft(self.limits.budget, [[] for _ in self.cache.groups])
        steady = self._steady > 0 and 0 < running.count <= draft.budget
        counts = self._ones[: running.count] if steady else self._grant(draft.budget)
        counts = self._reserve(counts, draft, steady)
        if not steady:
            self._register_chunks(counts, draft)
        additions: tuple[Addition, ...] = ()
        if len(self.waiting) and not draft.preempted:
            additions, counts = self._admit(counts, draft)
        if not len(counts) or not (steady or counts.any()):
            assert self.flights or not self.has_work, (
                "there is work, no request gets a token, nothing is in flight"
            )
            if self.flights:
                self.flights[-1].registered += draft.registered
            return None
        plan, places = self._compose(counts, draft, additions, steady and not additions)
        flight = Flight(
            plan,
            running.rows,
            running.requests,
            places,
            running.version,
            draft.registered,
            tuple(draft.names),
        )
        self.flights.append(flight)
        if self._emit:
            self._emit_planned(flight, draft, began)
        return plan

    def _grant(self, budget: int) -> Longs:
        """Tokens for each place: what it wants, in running order, until the budget is spent."""
        running = self.running
        # The last token a request may have is never computed: nothing is sampled after it.
        want = np.minimum(running.length, running.end - 1) - running.computed
        if self.limits.long_prefill:
            np.minimum(want, self.limits.long_prefill, out=want)
        before = np.cumsum(want) - want
        granted: Longs = np.clip(budget - before, 0, want)
        return granted

    def _reserve(self, counts: Longs, draft: _Draft, steady: bool) -> Longs:
        """Blocks for what was granted, preempting where they run out; the counts of those who stay."""
        running = self.running
        short = (running.computed + counts > running.capacity).nonzero()[0]
        if not len(short):
            return counts
        starts = running.computed[short]
        upto = starts + counts[short]
        known = running.cursor[short] - running.row[short] * self.limits.max_length
        # A step that crosses a boundary finds the block before it written, and known unless several steps
        # are in flight: that much can be made findable.
        written = np.minimum(starts, known)
        if not (steady and (written == starts).all() and self._cross(short, starts, draft)):
            columns = (short, counts[short], starts, written)
            for place, count, start, findable in zip(*(column.tolist() for column in columns), strict=True):
                if count:
                    self._secure(place, start, start + count, findable, draft)
        running.capacity[short] = -(-upto // self.cache.block_size) * self.cache.block_size
        if draft.preempted:
            kept = [place for place in range(running.count) if place not in draft.preempted]
            counts = counts[kept]
            self._leave(sorted(draft.preempted))
        return counts

    def _cross(self, short: Longs, starts: Longs, draft: _Draft) -> bool:
        """The steady case: each of them filled a block with its last token and wants one more."""
        running, block_size = self.running, self.cache.block_size
        rows = running.row[short]
        # Each one's last full block is [start - block_size, start).
        filled = running.tokens[rows[:, None], starts[:, None] + np.arange(-block_size, 0)]
        tables = [running.requests[place].tables for place in short.tolist()]
        crossed = self.cache.cross(tables, filled.tobytes())
        if crossed is None:
            return False
        blocks, keys = crossed
        draft.registered += keys
        draft.grown[0] += zip(rows.tolist(), (starts // block_size).tolist(), blocks, strict=True)
        return True

    def _secure(self, place: int, start: int, upto: int, findable: int, draft: _Draft) -> None:
        """Blocks for one request's tokens up to `upto`, taken from others or, when it is last, given up."""
        request = self.running.requests[place]
        if place in draft.preempted:
            return
        draft.registered += self.cache.register(request.tables, self.running.source(request), findable)
        while (fresh := self.cache.grow(request.tables, start, upto)) is None:
            victim = max(
                (p for p in range(self.running.count) if p not in draft.preempted),
                key=lambda p: self.policy.key(self.running.requests[p]),
            )
            self._preempt(victim, draft)
            if victim == place:
                return
        for table, blocks, grown in zip(request.tables.blocks, fresh, draft.grown, strict=True):
            first = len(table) - len(blocks)
            for offset, block in enumerate(blocks):
                grown.append((request.row, first + offset, block))

    def _register_chunks(self, counts: Longs, draft: _Draft) -> None:
        """A chunk's blocks are findable from the plan on: the writer is launched no later than a reader."""
        running = self.running
        for place in (counts > 1).nonzero()[0].tolist():
            request, start = running.requests[place], int(running.computed[place])
            upto = start + int(counts[place])
            draft.registered += self.cache.register(request.tables, running.source(request), upto)
            self._count_recomputed(request, start, upto, draft)

    def _count_recomputed(self, request: Request, start: int, upto: int, draft: _Draft) -> None:
        again = max(0, min(upto, request.num_reached) - start)
        request.num_recomputed += again
        draft.recomputed += again

    def _preempt(self, place: int, draft: _Draft) -> None:
        """Take a request's blocks and put it back into the queue; what is in flight for it is dropped."""
        request = self.running.requests[place]
        draft.preempted.add(place)
        draft.names.append(request.request_id)
        in_flight = self._drop(request)
        computed = int(self.running.computed[place]) - in_flight
        request.num_reached = max(request.num_reached, computed)
        request.num_preemptions += 1
        self.counts.preemptions += 1
        self.cache.release(request.tables)
        draft.forget_growth(request.row)
        if self._emit:
            self._emit(RequestPreempted(self._clock(), self._index, request.request_id, computed, in_flight))

    def _leave(self, places: list[int]) -> None:
        """Preempted requests leave their rows and wait again."""
        leaving = [self.running.requests[place] for place in places]
        self.running.remove(places)
        for request in leaving:
            self._removed.append(request.row)
            request.state = State.WAITING
            self.waiting.push(request)

    def _admit(self, counts: Longs, draft: _Draft) -> tuple[tuple[Addition, ...], Longs]:
        """Waiting requests, as long as there are budget, rows and blocks."""
        budget = draft.budget - int(counts.sum())
        admissions: list[Admission] = []
        granted: list[int] = []
        while budget > 0 and len(admissions) < self.running.num_free_rows and self.cache.pool.num_free:
            request = self.waiting.peek()
            if request is None:
                break
            hit = self._lookup(request)
            count = min(len(request.token_ids) - hit.num_tokens, budget, self.limits.long_prefill or budget)
            if not self.cache.admit(request.tables, hit, hit.num_tokens + count):
                break
            self.waiting.pop()
            capacity = len(request.tables.blocks[0]) * self.cache.block_size
            admissions.append(Admission(request, hit.num_tokens, capacity))
            granted.append(count)
            budget -= count
            # At once, so that the next request of this very plan finds it.
            draft.registered += self.cache.register(request.tables, request, hit.num_tokens + count)
            self._count_lookup(request, hit.num_tokens)
            self._count_recomputed(request, hit.num_tokens, hit.num_tokens + count, draft)
        if not admissions:
            return (), counts
        self.running.add(admissions)
        additions = tuple(self._enter(admission) for admission in admissions)
        return additions, np.concatenate([counts, np.array(granted, np.int64)])

    def _lookup(self, request: Request) -> Hit:
        if request.params.skip_reading_prefix_cache:
            return Hit(0, [[] for _ in self.cache.groups])
        return self.cache.lookup(request.tables, request, len(request.token_ids))

    def _count_lookup(self, request: Request, found: int) -> None:
        self.counts.prefix_queries += len(request.token_ids)
        self.counts.prefix_hits += found
        if request.num_preemptions == 0:
            self.counts.prompt_tokens += request.num_prompt_tokens
            request.num_cached_tokens = found

    def _enter(self, admission: Admission) -> Addition:
        request, now = admission.request, self._clock()
        request.admitted_at = self._index
        request.state = State.RUNNING
        resumed = request.times.scheduled is not None
        if not resumed:
            request.times.scheduled = now
        if self._emit:
            num_tokens, reached = len(request.token_ids), request.num_reached
            self._emit(
                RequestAdmitted(
                    now,
                    self._index,
                    request.request_id,
                    request.row,
                    num_tokens,
                    admission.computed,
                    reached,
                    resumed,
                )
            )
        return Addition(
            row=request.row,
            request_id=request.request_id,
            token_ids=request.token_ids,
            num_prompt_tokens=request.num_prompt_tokens,
            blocks=tuple(np.array(table, np.int32) for table in request.tables.blocks),
            params=request.params,
            seed=request.seed,
            eos_token_ids=request.eos_token_ids,
            adapter=request.adapter,
        )

    def _compose(
        self, counts: Longs, draft: _Draft, additions: tuple[Addition, ...], steady: bool
    ) -> tuple[StepPlan, Longs | None]:
        """Advance the columns and write the plan down; also the places that sample, None for all."""
        running, n = self.running, self.running.count
        starts = running.computed.astype(np.int32)
        places = None
        rows, granted, samples = running.rows, self._one_each[:n], self._all_sample[:n]
        if steady:
            running.advancing += 1
            self._steady -= 1
        else:
            running.computed += counts
            yields = (running.computed == running.length) & (counts > 0)
            running.length += yields
            self._steady = int((running.end - running.length).min()) if yields.all() else 0
            granted, samples = counts.astype(np.int32), yields
            if not yields.all():
                places = yields.nonzero()[0]
                part = counts.nonzero()[0]
                rows, starts, granted, samples = rows[part], starts[part], granted[part], yields[part]
        grown = tuple([_growth(group) for group in draft.grown])
        removed = np.array(self._removed, np.int32) if self._removed else NOBODY
        self._removed.clear()
        index, self._index = self._index, self._index + 1
        plan = StepPlan(index, draft.budget, rows, starts, granted, samples, removed, additions, grown)
        return plan, places

    # --- commit ---------------------------------------------------------------------------------------

    def commit(self, result: StepResult) -> Commit:
        """Apply the oldest plan's result: append its tokens, end who is done."""
        began = self._clock()
        flight = self.flights.popleft()
        assert flight.plan.index == result.index, f"step {flight.plan.index} is due, got {result.index}"
        running, places, token_ids = self.running, flight.places, result.token_ids
        requests, kept = flight.requests, None
        if flight.version != running.version or places is not None:
            requests, rows = flight.sampling(), result.rows
            if flight.dropped:
                kept = [line for line, request in enumerate(requests) if request not in flight.dropped]
                requests = [requests[line] for line in kept]
                token_ids, rows = token_ids[kept], rows[kept]
            places = running.places_of_rows(rows)
        lines = running.append(places, token_ids)
        self.counts.generation_tokens += len(token_ids)
        if self._emit:
            self._emit_committed(flight, result, requests, token_ids, kept, began)
        streamed: list[Request] = []
        ending: list[tuple[Request, FinishReason, int | str | None]] = []
        for line in lines:
            request = requests[line]
            of_result = line if kept is None else kept[line]
            self._look(request, int(token_ids[line]), result, of_result, began, ending)
            if request.streams:
                streamed.append(request)
        self._retire(ending)
        return Commit(flight, requests, streamed, [request for request, _, _ in ending])

    def _look(
        self,
        request: Request,
        token_id: int,
        result: StepResult,
        line: int,
        now: float,
        ending: list[tuple[Request, FinishReason, int | str | None]],
    ) -> None:
        """One request's new token, looked at closely: does it end here, and who has to know?"""
        place = self.running.place_of(request)
        if request.times.first_token is None:
            request.times.first_token = now
            if not request.watched:
                self.running.unwatch(place)
        request.times.last_token = now
        if request.params.logprobs is not None:
            assert result.logprobs is not None, "logprobs were asked for and the runner gave none"
            request.logprobs.append((result.logprobs, line))
        length = self.running.known_at(place)
        num_output = length - request.num_prompt_tokens
        text_stop = None
        if request.stop_check is not None:
            text_stop = request.stop_check(self.running.tokens_at(place)[request.num_prompt_tokens :])
        if token_id in request.stop_ids and num_output >= request.params.min_tokens:
            ending.append((request, "stop", None if token_id in request.eos_token_ids else token_id))
        elif text_stop is not None:
            ending.append((request, "stop", text_stop))
        elif length >= request.max_length:
            ending.append((request, "length", None))

    def _retire(self, ending: Sequence[tuple[Request, FinishReason, int | str | None]]) -> None:
        """Running requests end: they leave their rows and blocks, and whatever is in flight for them."""
        if not ending:
            return
        places = []
        for request, _, _ in ending:
            place = self.running.place_of(request)
            places.append(place)
            self._drop(request)
            written = min(int(self.running.computed[place]), self.running.known_at(place))
            keys = self.cache.register(request.tables, self.running.source(request), written)
            if self.flights:  # the newest step may still fail, and it is among those that wrote these blocks
                self.flights[-1].registered += keys
            self.cache.release(request.tables)
        self.running.remove(places)
        for request, reason, stop_reason in ending:
            self._removed.append(request.row)
            self._end(request, reason, stop_reason)

    def _drop(self, request: Request) -> int:
        """Whatever is in flight for the request will be ignored; how many tokens that is."""
        tokens = 0
        for flight in self.flights:
            if flight.plan.index >= request.admitted_at and request not in flight.dropped:
                tokens += flight.tokens_of(request)
                flight.dropped.add(request)
        request.num_overshoot += tokens
        return tokens

    def _end(self, request: Request, reason: FinishReason, stop_reason: int | str | None) -> None:
        request.state = State.FINISHED
        request.finish_reason = reason
        request.stop_reason = stop_reason
        self.counts.finished[reason] = self.counts.finished.get(reason, 0) + 1
        if self._emit:
            self._emit(
                RequestFinished(
                    self._clock(),
                    request.request_id,
                    reason,
                    stop_reason,
                    len(request.token_ids) - request.num_prompt_tokens,
                    request.num_preemptions,
                )
            )

    # --- failure --------------------------------------------------------------------------------------

    def fail(self, error: str) -> Commit:
        """The oldest step in flight failed. Its requests end with "error", the others are recomputed.

        Nothing a step in flight wrote is trusted: its blocks leave the prefix cache. The runner starts
        from an empty batch afterwards.
        """
        failed = self.flights[0]
        names = failed.names
        planned = {names[row] for row in failed.plan.rows.tolist()}
        victims = [r for r in failed.requests if r.request_id in planned and r not in failed.dropped]
        if self._emit:
            ids = tuple(request.request_id for request in victims)
            self._emit(StepFailed(self._clock(), failed.plan.index, ids, error))
        self.abort(victims, "error", error)
        draft = _Draft(0, [])
        for place in range(self.running.count):
            self._preempt(place, draft)
        if draft.preempted:
            self._leave(sorted(draft.preempted))
        for flight in self.flights:
            self.cache.pool.withdraw(flight.registered)
        self.flights.clear()
        self._removed.clear()
        self._steady = 0
        return Commit(failed, (), (), victims)

    def tokens_of(self, request: Request) -> Ints:
        """The tokens a request has so far; a view while it runs."""
        if request.state is State.RUNNING:
            return self.running.tokens_at(self.running.place_of(request))
        return request.token_ids

    # --- what observers see ---------------------------------------------------------------------------

    def _emit_planned(self, flight: Flight, draft: _Draft, began: float) -> None:
        now, pool, plan, names = self._clock(), self.cache.pool, flight.plan, flight.names
        self._emit(
            StepPlanned(
                at=now,
                plan=plan,
                request_ids=tuple(names[row] for row in plan.rows.tolist()),
                running=self.running.count,
                waiting=len(self.waiting),
                blocks_free=pool.num_free,
                blocks_held=pool.num_held,
                blocks_cached=pool.num_cached,
                recomputed=draft.recomputed,
                plan_s=now - began,
            )
        )

    def _emit_committed(
        self,
        flight: Flight,
        result: StepResult,
        requests: Sequence[Request],
        token_ids: Ints,
        kept: list[int] | None,
        began: float,
    ) -> None:
        now = self._clock()
        ends = flight.plan.starts + flight.plan.counts
        positions = ends[flight.plan.samples]
        dropped = {request.row for request in flight.dropped}
        alive = [row not in dropped for row in flight.plan.rows.tolist()]
        self._emit(
            StepCommitted(
                at=now,
                result=result,
                request_ids=tuple(request.request_id for request in requests),
                token_ids=token_ids,
                positions=positions if kept is None else positions[kept],
                taken=np.array(range(len(requests)) if kept is None else kept, np.int32),
                overshoot=flight.plan.num_tokens - int(flight.plan.counts[alive].sum()),
                commit_s=now - began,
            )
        )

    def check(self) -> None:
        """The laws that hold after every step; raises AssertionError where one is broken."""
        self.cache.check(request.tables for request in self.running.requests)
        running = self.running
        assert (running.computed <= running.length).all(), "a request has computed more tokens than it has"
        assert (running.length <= running.end).all(), "a request is longer than it may become"
        assert (running.computed <= running.capacity).all(), "a request has written past its blocks"


def _growth(grown: list[tuple[int, int, int]]) -> Growth:
    if not grown:
        return NO_GROWTH
    rows, places, blocks = np.array(grown, np.int32).T
    return Growth(rows, places, blocks)
