"""Hands out a step's token budget and the blocks it needs: running requests first, then waiting ones.

There is no prefill and no decode phase: every request has `computed` tokens chasing `length` (the unified
scheduler of vLLM V1). Knows nothing of tensors, results or text.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy

import numpy as np

from workbench.cache.manager import Hit
from workbench.engine.books import Books
from workbench.engine.drafting import Proposals, Speculation, affordable, asked, proposed
from workbench.engine.events import PrefixLookedUp, RequestAdmitted
from workbench.engine.flight import Flight
from workbench.engine.outline import NO_GROWTH, Outline
from workbench.engine.plan import Addition, Growth, Ints, Scoring, StepPlan
from workbench.engine.request import Request, State
from workbench.engine.running import Admission, Longs


class Planner:
    """Makes plans from the books, and moves requests between queue and rows as it does."""

    def __init__(self, books: Books, speculation: Speculation | None = None) -> None:
        self._books = books
        self._speculation = speculation
        self._scoring: dict[Request, int] = {}  # who wants prompt logprobs -> first token not planned yet
        self._untold: list[str] = []  # ids preempted while no plan could be made; the next one tells
        self._steady = 0  # plans ahead in which everybody wants just the token it sampled last
        self._room = 0  # of those, how many find room in the blocks that are held
        most = books.limits.max_rows
        self._ones: Longs = np.ones(most, np.int64)
        self._no_growth = (NO_GROWTH,) * len(books.cache.groups)
        self._nothing = Outline(books.limits.budget, [])  # what a step like the one before decides
        self._last_block: Longs = np.arange(-books.cache.block_size, 0)  # places of its tokens, from its end

    def copy(self, books: Books, requests: Mapping[Request, Request]) -> Planner:
        """One that goes on from here over a copy of the books; `requests`: whose copy is whose."""
        other = copy(self)
        other._books, other._untold = books, list(self._untold)
        other._speculation = None if self._speculation is None else self._speculation.copy()
        other._scoring = {requests[r]: first for r, first in self._scoring.items() if r in requests}
        return other

    def restart(self) -> None:
        """Nobody runs any more."""
        self._scoring.clear()
        self.unsettle()

    def unsettle(self) -> None:
        """Somebody wants more than the token it sampled last."""
        self._steady = self._room = 0

    def plan(self) -> Outline | None:
        """The next step, entered into the books as a flight; None when nobody wants a token now."""
        books, running = self._books, self._books.running
        drafting = self._speculation
        if drafting is not None and not drafting.waits(running):
            drafting = None
        if books.flights:
            last = books.flights[-1].plan  # how far it gets is not known, or who drafts what behind it
            if last.drafts is not None or last.asks is not None or drafting is not None:
                if self._speculation is not None:
                    self._speculation.meanwhile(running)
                return None
        proposals = None if drafting is None else proposed(drafting, running)
        asking = drafting is not None and drafting.asks(running) is not None
        alone = proposals is None and not (asking or books.waiting.num_ready or self._untold)
        if self._steady and self._room and alone and 0 < running.count <= books.limits.budget:
            return self._repeat()
        outline = Outline(books.limits.budget, [[] for _ in books.cache.groups], names=self._untold)
        try:
            return self._draw_up(outline, proposals)
        except BaseException:  # nobody will write these blocks
            books.cache.withdraw(outline.registered)
            raise

    def _draw_up(self, outline: Outline, proposals: Proposals | None) -> Outline | None:
        """The plan that `outline` becomes."""
        books, running = self._books, self._books.running
        steady = proposals is None and self._steady > 0 and 0 < running.count <= outline.budget
        counts = self._ones[: running.count] if steady else self._grant(outline.budget)
        if proposals is not None:
            outline.proposals = affordable(proposals, counts, outline.budget, running, books.cache)
        if not (steady and (self._room or self._cross(outline))):
            counts = self._reserve(counts, outline)
        if not steady:
            self._register_chunks(counts, outline)
        additions: tuple[Addition, ...] = ()
        if books.waiting.num_ready and not outline.preempted:
            additions, counts = self._admit(counts, outline)
        if not len(counts) or not (steady or counts.any()):
            if books.flights:
                books.flights[-1].registered += outline.registered
            return None
        self._untold = []
        plan, places = self._compose(counts, outline, additions, steady and not additions)
        names = tuple(outline.names)
        books.flights.append(
            Flight(plan, running.rows, running.requests, places, running.version, outline.registered, names)
        )
        return outline

    def _repeat(self) -> Outline:
        """A step like the one before: everybody computes what it sampled, within the blocks it holds."""
        books, running = self._books, self._books.running
        n, starts = running.count, running.computed.astype(np.int32)
        running.advance(self._ones[:n])
        self._steady -= 1
        self._room -= 1
        plan = StepPlan(
            books.next_index(), books.limits.budget, running.rows, starts, running.one_each,
            running.all_sample, books.take_removed(), (), self._no_growth, books.emit.logprobs,
        )  # fmt: skip
        books.flights.append(Flight(plan, running.rows, running.requests, None, running.version, [], ()))
        return self._nothing

    def _grant(self, budget: int) -> Longs:
        """Tokens for each place: what it wants, in running order, until the budget is spent."""
        running = self._books.running
        # The last token a request may have is never computed: nothing is sampled after it.
        want: Longs = np.minimum(running.length, running.end - 1) - running.computed
        if self._books.limits.long_prefill:
            np.minimum(want, self._books.limits.long_prefill, out=want)
        if int(want.sum()) <= budget:
            return want
        before = np.cumsum(want) - want
        granted: Longs = np.minimum(np.maximum(budget - before, 0), want)
        return granted

    def _reserve(self, counts: Longs, outline: Outline) -> Longs:
        """Blocks for what was granted, preempting where they run out; the counts of those who stay."""
        running, proposals = self._books.running, outline.proposals
        wanted = counts if proposals is None else counts + proposals.counts
        short = (running.computed + wanted > running.capacity).nonzero()[0]
        if not len(short):
            return counts
        starts = running.computed[short]
        upto = starts + wanted[short]
        known = running.cursor[short] - running.row[short] * self._books.limits.max_length
        # A step that crosses a boundary finds the block before it written, and known unless several steps
        # are in flight: that much can be made findable.
        columns = (short, wanted[short], starts, np.minimum(starts, known))
        for place, count, start, findable in zip(*(column.tolist() for column in columns), strict=True):
            if count:
                self._secure(place, start, start + count, findable, outline)
        running.capacity[short] = -(-upto // self._books.cache.block_size) * self._books.cache.block_size
        if outline.preempted:
            kept = [place for place in range(running.count) if place not in outline.preempted]
            counts = counts[kept]
            self._books.leave(sorted(outline.preempted))
        return counts

    def _cross(self, outline: Outline) -> bool:
        """Steady requests at a block boundary get their next block, all at once.

        Each filled a block with its last token and wants one more. False, and nothing done, where the
        general way is needed.
        """
        running, cache = self._books.running, self._books.cache
        short = (running.computed == running.capacity).nonzero()[0]
        if not len(short):
            return True
        rows, starts = running.row[short], running.computed[short]
        if (running.cursor[short] < rows * self._books.limits.max_length + starts).any():
            return False  # with several steps in flight a block's last token may not be known yet
        filled = running.tokens[rows[:, None], starts[:, None] + self._last_block]
        requests = running.requests
        crossed = cache.cross([requests[place].tables for place in short.tolist()], filled.tobytes())
        if crossed is None:
            return False
        blocks, keys = crossed
        outline.registered += keys
        places = starts // cache.block_size
        outline.crossed = Growth(rows.astype(np.int32), places.astype(np.int32), np.array(blocks, np.int32))
        running.capacity[short] = starts + cache.block_size
        return True

    def _secure(self, place: int, start: int, upto: int, findable: int, outline: Outline) -> None:
        """Blocks for one request's tokens up to `upto`, taken from others or, when it is last, given up."""
        request = self._books.running.requests[place]
        if place in outline.preempted:
            return
        outline.registered += self._books.cache.register(
            request.tables, self._books.running.source(request), findable
        )
        while (fresh := self._books.cache.grow(request.tables, start, upto)) is None:
            victim = max(
                (p for p in range(self._books.running.count) if p not in outline.preempted),
                key=lambda p: self._books.policy.key(self._books.running.requests[p]),
            )
            outline.preempt(victim, self._books.preempt(victim))
            if victim == place:
                return
        for table, blocks, grown in zip(request.tables.blocks, fresh, outline.grown, strict=True):
            first = len(table) - len(blocks)
            for offset, block in enumerate(blocks):
                grown.append((request.row, first + offset, block))

    def _register_chunks(self, counts: Longs, outline: Outline) -> None:
        """A chunk's blocks are findable from the plan on: the writer is launched no later than a reader."""
        running = self._books.running
        # Where one token is left, it is the newest: its block is registered when the next one is wanted.
        chunks = (counts > 0) & (running.length - running.computed > 1)
        for place in chunks.nonzero()[0].tolist():
            request, start = running.requests[place], int(running.computed[place])
            upto = start + int(counts[place])
            outline.registered += self._books.cache.register(request.tables, running.source(request), upto)
            self._count_recomputed(request, start, upto, outline)

    def _count_recomputed(self, request: Request, start: int, upto: int, outline: Outline) -> None:
        again = max(0, min(upto, request.num_reached) - start)
        request.num_recomputed += again
        outline.recomputed += again

    def _admit(self, counts: Longs, outline: Outline) -> tuple[tuple[Addition, ...], Longs]:
        """Waiting requests, as long as there are budget, rows and blocks."""
        books = self._books
        books.adapters.begin(idle=not counts.any())
        budget = outline.budget - int(counts.sum()) - outline.num_drafts
        at_once = books.limits.long_prefill or outline.budget
        admissions: list[Admission] = []
        try:
            granted = self._choose(admissions, budget, at_once, outline)
        except BaseException:  # whoever was taken off the queue goes back to it
            books.take_back([admission.request for admission in admissions])
            raise
        finally:
            books.end_admission()
        if not admissions:
            return (), counts
        self._books.running.add(admissions)
        additions = tuple(self._enter(admission) for admission in admissions)
        return additions, np.concatenate([counts, np.array(granted, np.int64)])

    def _choose(self, admissions: list[Admission], budget: int, at_once: int, outline: Outline) -> list[int]:
        """Fill `admissions` with whom there is room for; how many tokens each gets."""
        books, cache = self._books, self._books.cache
        granted: list[int] = []
        while budget > 0 and len(admissions) < books.running.num_free_rows and cache.pool.num_free:
            request = books.next_waiting()
            if request is None:
                break
            hit = self._lookup(request)
            count = min(len(request.token_ids) - hit.num_tokens, budget, at_once)
            if not cache.admit(request.tables, hit, hit.num_tokens + count):
                break
            books.waiting.pop()
            books.adapters.hold(request)
            capacity = len(request.tables.blocks[0]) * cache.block_size
            admissions.append(Admission(request, hit.num_tokens, capacity))
            granted.append(count)
            budget -= count
            # At once, so that the next request of this very plan finds it.
            outline.registered += cache.register(request.tables, request, hit.num_tokens + count)
            self._count_lookup(request, hit.num_tokens)
            self._count_recomputed(request, hit.num_tokens, hit.num_tokens + count, outline)
        return granted

    def _lookup(self, request: Request) -> Hit:
        if not self._reads_cache(request):
            return Hit(0, [[] for _ in self._books.cache.groups])
        books, queried = self._books, len(request.token_ids)
        if request.scoring:
            books.known_scores.tell(request)
        hit = books.cache.lookup(request.tables, request, queried)
        if request.scoring:
            # What predicts a token that is still to be told of has to be computed, cached or not.
            found, hit = hit, books.cache.lookup(request.tables, request, request.num_scored)
            request.num_forgone = found.num_tokens - hit.num_tokens
        if books.emit:
            books.emit(
                PrefixLookedUp(books.clock(), books.index, request.request_id, queried, hit.num_tokens)
            )
        return hit

    def _reads_cache(self, request: Request) -> bool:
        return self._books.cache.caching and not request.params.skip_reading_prefix_cache

    def _count_lookup(self, request: Request, found: int) -> None:
        """The first time only, as in vLLM: a request that comes back finds what it left itself."""
        if request.num_preemptions:
            return
        counts = self._books.counts
        counts.prompt_tokens += request.num_prompt_tokens
        request.num_cached_tokens = found
        if self._reads_cache(request):
            counts.prefix_queries += request.num_prompt_tokens
            counts.prefix_hits += found

    def _enter(self, admission: Admission) -> Addition:
        request, now = admission.request, self._books.clock()
        request.admitted_at = self._books.index
        if request.scoring:
            self._scoring[request] = request.num_scored
        request.state = State.RUNNING
        if self._speculation is not None:
            self._speculation.enter(request)
        resumed = request.times.scheduled is not None
        if not resumed:
            request.times.scheduled = now
        if self._books.emit:
            num_tokens, reached = len(request.token_ids), request.num_reached
            self._books.emit(
                RequestAdmitted(
                    now,
                    self._books.index,
                    request.request_id,
                    request.row,
                    num_tokens,
                    num_tokens if self._reads_cache(request) else 0,
                    admission.computed,
                    reached,
                    resumed,
                    request.num_forgone,
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
            adapter=request.adapter_slot,
            bad_words=request.bad_words,
            score_from=request.score_from,
        )

    def _compose(
        self, counts: Longs, outline: Outline, additions: tuple[Addition, ...], steady: bool
    ) -> tuple[StepPlan, Longs | None]:
        """Advance the columns and write the plan down; also the places that sample, None for all."""
        running, n = self._books.running, self._books.running.count
        starts = running.computed.astype(np.int32)
        places, scoring, part = None, None, None
        rows, granted, samples = running.rows, running.one_each, running.all_sample
        if steady:
            running.advance(self._ones[:n])
            self._steady -= 1
            self._room = self._room - 1 if self._room else int((running.capacity - running.computed).min())
        else:
            self._room = 0
            if self._scoring:
                scoring = self._score(starts + counts)
            running.computed += counts
            yields = (running.computed == running.length) & (counts > 0)
            running.length += yields
            self._steady = int((running.end - running.length).min()) if yields.all() else 0
            granted, samples = counts.astype(np.int32), yields
            if outline.proposals is not None:
                self._steady = 0
                self._add_drafts(outline.proposals, granted)
            if not yields.all():
                places = yields.nonzero()[0]
                part = counts.nonzero()[0]
                if scoring is not None:
                    lines = np.searchsorted(part, scoring.lines).astype(np.int32)
                    scoring = scoring._replace(lines=lines)
                rows, starts, granted, samples = rows[part], starts[part], granted[part], yields[part]
        asks, drafting = None, None if self._books.flights else self._speculation
        if drafting is not None:
            asks = asked(drafting, running, places, part)
        removed = self._books.take_removed()
        index = self._books.next_index()
        plan = StepPlan(
            index, outline.budget, rows, starts, granted, samples, removed, additions, outline.growth,
            self._books.emit.logprobs, scoring, outline.drafts(part),
            self._books.adapters.take_loads(), asks,
        )  # fmt: skip
        return plan, places

    def _add_drafts(self, proposals: Proposals, granted: Ints) -> None:
        """Whoever verifies computes them too, and is promised a token behind each; commit corrects it."""
        running, counts = self._books.running, proposals.counts
        running.computed[: len(counts)] += counts
        running.length[: len(counts)] += counts
        granted[: len(counts)] += counts.astype(np.int32)

    def _score(self, ends: Longs) -> Scoring | None:
        """Prompt tokens that chunks which end there tell of, by place; None where there are none."""
        running, found = self._books.running, []
        for request, first in list(self._scoring.items()):
            if request.state is not State.RUNNING:
                del self._scoring[request]
                continue
            place = running.place_of(request)
            end = min(int(ends[place]) + 1, request.num_prompt_tokens)
            if end > first:
                found.append((place, first, end))
                self._scoring[request] = end
            if end == request.num_prompt_tokens:
                del self._scoring[request]
        return Scoring(*np.array(sorted(found), np.int32).T) if found else None
