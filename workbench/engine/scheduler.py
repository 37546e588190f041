"""Decides which tokens run next, and applies what came back. Knows no tensors, no text, no time source."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from workbench.cache.manager import CacheManager
from workbench.engine.adapter_turns import Adapters
from workbench.engine.books import Books, Ending, Limits
from workbench.engine.clock import Clock
from workbench.engine.drafting import Speculation
from workbench.engine.events import Emitter, Followed, StepFailed
from workbench.engine.flight import Commit, Flight
from workbench.engine.plan import Ints, StepPlan
from workbench.engine.planner import Planner
from workbench.engine.policies import Policy
from workbench.engine.preview import Preview, Waiting, preview, waiting_in
from workbench.engine.reports import step_committed, step_planned
from workbench.engine.request import Need, Request
from workbench.engine.result import StepResult
from workbench.engine.verified import Behind, Line, Verified

logger = logging.getLogger(__name__)


class Scheduler:
    """Owns the requests between arrival and end. `plan` and `commit` alternate, at most a few plans ahead."""

    def __init__(
        self,
        limits: Limits,
        cache: CacheManager,
        policy: Policy,
        clock: Clock,
        emit: Emitter,
        speculation: Speculation | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        self._books = books = Books(limits, cache, policy, clock, emit, adapters)
        self._planner = Planner(books, speculation)
        self._speculation = speculation
        self._clock = clock
        self._emit = emit
        self.cache = cache
        self.waiting = books.waiting
        self.running = books.running
        self.flights = books.flights
        self.counts = books.counts

    @property
    def limits(self) -> Limits:
        """What a step and the batch may hold now."""
        return self._books.limits

    def add(self, request: Request) -> None:
        """Queue a request that has been checked against the limits."""
        self._books.add(request)

    def wake(self) -> list[Request]:
        """Requests whose need is met may be admitted from now on; those whose need failed end: these."""
        failed = self._books.wake()
        for request in failed:
            logger.error("%s ends: %s", request, request.stop_reason)
        return failed

    @property
    def stalled_by(self) -> Need | None:
        """What everybody waits for, with nothing to do until it is ready; None where there is something."""
        idle = not (self.running.count or self.waiting.num_ready or self.flights)
        return self.waiting.awaited if idle else None

    def abort(self, requests: Iterable[Request]) -> None:
        """End requests wherever they are; those that have ended are left alone."""
        self._books.abort(requests)

    def reorder(self, order: Sequence[Request]) -> bool:
        """Waiting requests trade their places for that order; False, and nothing done, where the policy
        looks at something else than arrivals and priorities."""
        return self._books.reorder(order)

    def set_budget(self, budget: int) -> None:
        """The token budget of the steps planned from here on; what the runner was built for is the most."""
        self._books.set_budget(budget)

    @property
    def has_work(self) -> bool:
        """Somebody runs, waits, or is in flight."""
        return bool(self.running.count or len(self.waiting) or self.flights)

    def tokens_of(self, request: Request) -> Ints:
        """The tokens a request has so far; a view while it runs."""
        return self._books.tokens_of(request)

    def plan(self) -> StepPlan | None:
        """The next step, or None when nobody wants a token before a step in flight comes back."""
        began = self._clock() if self._emit else 0.0
        draft = self._planner.plan()
        if draft is None:
            assert self.flights or not (self.running.count or self.waiting.num_ready), (
                "there is work, no request gets a token, nothing is in flight"
            )
            return None
        flight = self.flights[-1]
        if self._emit:
            self._books.tell_blocks(flight.plan.index)
            self._emit(step_planned(self._books, flight, draft.recomputed, began))
        return flight.plan

    def preview(self) -> Preview:
        """What `plan` would say now; nothing changes. No step may be in flight."""
        return preview(self._books, self._planner)

    def queue(self) -> tuple[Waiting, ...]:
        """Who waits, first to be admitted first."""
        return waiting_in(self._books)

    def commit(self, result: StepResult) -> Commit:
        """Apply the oldest plan's result: append its tokens, end who is done."""
        began = self._clock()
        flight = self.flights.popleft()
        assert flight.plan.index == result.index, f"step {flight.plan.index} is due, got {result.index}"
        running, places, token_ids = self.running, flight.places, result.token_ids[: len(result.rows)]
        requests, kept = flight.requests, None
        for request in flight.keep_scores(result.scores):
            self._books.known_scores.keep(request)
        ending = _failures(flight, result) if result.failed else []
        if flight.version != running.version or places is not None or flight.dropped:
            requests, rows = flight.sampling(), result.rows
            if flight.dropped:
                kept = [line for line, request in enumerate(requests) if request not in flight.dropped]
                requests = [requests[line] for line in kept]
                token_ids, rows = token_ids[kept], rows[kept]
            places = running.places_of_rows(rows)
        verified = Verified(self._books, flight, result) if flight.plan.drafts is not None else None
        lines = running.append(places, token_ids)
        self.counts.generation_tokens += len(token_ids)
        streamed: list[Request] = []
        for line in lines:
            request = requests[line]
            of_result = line if kept is None else kept[line]
            self._look(request, result, of_result, began)
            if (end := self._end_of(request, int(token_ids[line]))) is not None:
                ending.append(end)
            if request.streams:
                streamed.append(request)
        followed = self._follow(flight, result, ending) if result.forced else ()
        accepted = None
        if verified is not None:
            kept = list(range(len(requests))) if kept is None else kept
            behind = self._go_on(verified, result, ending, began)
            requests, kept = [*requests, *behind.requests], [*kept, *behind.lines]
            accepted = verified.settle(ending)
        if self._emit:
            self._emit(step_committed(self._books, flight, result, requests, kept, followed, accepted, began))
        self._books.retire(ending)
        if self._speculation is not None:
            self._speculation.committed(flight.plan, result, accepted)
            for each in ending:
                self._speculation.leave(each.request)
        return Commit(flight, requests, streamed, [each.request for each in ending])

    def _go_on(self, verified: Verified, result: StepResult, ending: list[Ending], now: float) -> Behind:
        """Requests take what was sampled behind the drafts that stand, up to a token that ends them."""
        ended, behind = {each.request for each in ending}, Behind([], [])
        for each in verified.lines:
            if each.request in ended:
                continue
            if (end := self._take(each, result, now)) is not None:
                each.request.times.last_token = now
                ending.append(end)
            behind.requests.extend([each.request] * each.taken)
            behind.lines.extend(range(each.extra, each.extra + each.taken))
        self.counts.generation_tokens += len(behind.lines)
        return behind

    def _take(self, each: Line, result: StepResult, now: float) -> Ending | None:
        """One request's: many at once, where nobody has to look at them one by one."""
        request, place = each.request, self.running.place_of(each.request)
        token_ids = result.token_ids[each.extra : each.extra + each.accepted].tolist()
        always = request.watched or request.stop_check is not None
        room = request.max_length - self.running.known_at(place)
        for count, token_id in enumerate(token_ids, 1):
            if not (always or token_id in request.stop_ids or count == room):
                continue
            self.running.follow(place, token_ids[each.taken : count])
            each.taken = count
            if request.watched:
                self._look(request, result, each.extra + count - 1, now)
            if (end := self._end_of(request, token_id)) is not None:
                return end
        self.running.follow(place, token_ids[each.taken :])
        each.taken = each.accepted
        return None

    def _follow(self, flight: Flight, result: StepResult, ending: list[Ending]) -> tuple[Followed, ...]:
        """Requests take what their grammars force, up to a token that would end them: that one is sampled.

        Text is looked through for stop strings a token at a time, and never again: there nothing follows.
        """
        holders = dict(zip(flight.rows.tolist(), flight.requests, strict=True))
        ended, followed = {each.request for each in ending}, []
        for row, _, token_ids in result.forced:
            request = holders[row]
            if request in ended or request in flight.dropped or request.stop_check is not None:
                continue
            taken = 0
            for token_id in token_ids.tolist():
                self.running.follow(place := self.running.place_of(request), [token_id])
                if self._end_of(request, token_id) is not None:
                    self.running.retract(place)
                    break
                taken += 1
            if taken:
                followed.append(Followed(request.request_id, token_ids[:taken]))
                self.counts.generation_tokens += taken
        if followed:
            self._planner.unsettle()
        return tuple(followed)

    def _look(self, request: Request, result: StepResult, line: int, now: float) -> None:
        """One request has a token that somebody has to know of."""
        place = self.running.place_of(request)
        if request.times.first_token is None:
            request.times.first_token = now
            if not request.watched:
                self.running.unwatch(place)
        request.times.last_token = now
        if request.params.wants_logprobs:
            assert result.logprobs is not None, "logprobs were asked for and the runner gave none"
            request.keep_logprobs(result.logprobs, line)

    def _end_of(self, request: Request, token_id: int) -> Ending | None:
        """Whether the request ends with its newest token, and why."""
        place = self.running.place_of(request)
        length = self.running.known_at(place)
        num_output = length - request.num_prompt_tokens
        text_stop = None
        if request.stop_check is not None:
            try:
                text_stop = request.stop_check(self.running.tokens_at(place)[request.num_prompt_tokens :])
            except Exception:  # its own request ends with it, and no other
                logger.exception("%s: its stop strings cannot be looked for; it ends", request)
                return Ending(request, "error", None)
        if token_id in request.stop_ids and num_output >= request.params.min_tokens:
            return Ending(request, "stop", None if token_id in request.eos_token_ids else token_id)
        if text_stop is not None:
            return Ending(request, "stop", text_stop)
        return Ending(request, "length", None) if length >= request.max_length else None

    def fail(self, error: str) -> Commit:
        """The oldest step in flight failed. Its requests end with "error", the others are recomputed.

        Nothing a step in flight wrote is trusted: its blocks leave the prefix cache. The runner starts
        from an empty batch afterwards.
        """
        books, failed = self._books, self.flights[0]
        names = failed.names
        planned = {names[row] for row in failed.plan.rows.tolist()}
        victims = [r for r in failed.requests if r.request_id in planned and r not in failed.dropped]
        if self._emit:
            ids = tuple(request.request_id for request in victims)
            self._emit(StepFailed(self._clock(), failed.plan.index, ids, error))
        books.abort(victims, "error")
        self._recompute_all()
        return Commit(failed, (), (), victims)

    def start_over(self, error: str) -> Sequence[Request]:
        """A plan was broken off: whoever runs is recomputed, or ends as with a step that failed.

        The requests that ended. The runner starts from an empty batch afterwards.
        """
        if self.flights:
            return self.fail(error).finished
        self._recompute_all()
        return ()

    def _recompute_all(self) -> None:
        books = self._books
        everybody = range(self.running.count)
        for place in everybody:
            books.preempt(place)
        books.leave(list(everybody))
        for flight in self.flights:
            self.cache.withdraw(flight.registered)
        self.flights.clear()
        books.removed.clear()
        self._planner.restart()
        books.adapters.restart()
        books.tell_blocks(books.index)

    def end_all(self, error: str) -> Commit:
        """No step will follow the one that failed: everybody ends with "error"."""
        failure = self.fail(error)
        rest = list(self.waiting)
        self._books.abort(rest, "error")
        return failure._replace(finished=[*failure.finished, *rest])

    def take_turned_away(self) -> list[Request]:
        """Who ended while plans were made since the last time, for its adapter could not be read any more."""
        turned_away, self._books.turned_away = self._books.turned_away, []
        return turned_away

    def users_of(self, adapter: int) -> int:
        """Open requests with an adapter; where there is none, no slot is kept for it either."""
        everybody = (*self.running.requests, *self.waiting)
        users = [request for request in everybody if request.adapter == adapter]
        if not users:
            self._books.adapters.unreserve(adapter)
        return len(users)

    def forget_prefixes(self) -> bool:
        """Nothing is found in the cache any more; False, and nothing done, while blocks are held."""
        if self.cache.pool.num_held:
            return False
        self.cache.forget_all()
        self._books.known_scores.forget()
        self._books.tell_blocks(self._books.index)
        return True

    def check_observers(self) -> None:
        """Raise what an observer raised that was to end more than the observer."""
        self._emit.check()

    def check(self) -> None:
        """The laws that hold after every step; raises AssertionError where one is broken."""
        self._books.check()


def _failures(flight: Flight, result: StepResult) -> list[Ending]:
    """Requests that end because their tokens could not be sampled; those tokens are dropped."""
    holders = dict(zip(flight.rows.tolist(), flight.requests, strict=True))
    ending = []
    for row, message in result.failed:
        request = holders[row]
        if request not in flight.dropped:  # it has ended otherwise, or failed twice
            logger.error("%s ends: %s", request, message)
            flight.drop(request)
            ending.append(Ending(request, "error", message))
    return ending
