"""What people may look at and edit between two steps: the next plan, the waiting queue, the token budget.

Everything is done in the engine's turn, with nothing in flight, so that no book is half written. Knows ids;
neither text nor how steps are made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from workbench.checks import at_least
from workbench.engine.loop import Engine
from workbench.engine.preview import Preview, Waiting
from workbench.engine.request import Request
from workbench.engine.scheduler import Scheduler
from workbench.open_requests import OpenRequests

T = TypeVar("T")


class BetweenSteps:
    """An engine's scheduler, as `llm.scheduler` shows it to people.

    Raises, all of it: RuntimeError when the engine is closed or its device was lost, and in the middle of a
    step of this very thread.
    """

    def __init__(self, engine: Callable[[], Engine[Any]], requests: OpenRequests, most: int) -> None:
        """`most`: tokens of the largest step that the runner was built for."""
        self._engine = engine
        self._requests = requests
        self._most = most

    @property
    def busy(self) -> bool:
        """Whether a call that waits for requests of its own, such as `generate`, drives the engine."""
        _ = self._engine()
        return self._requests.awaited

    @property
    def in_step(self) -> bool:
        """Whether this very thread is in the middle of a step, where nothing can be looked at or edited."""
        return self._engine().turn.mine

    def preview(self) -> Preview:
        """The next step as it will be, unless somebody comes, goes or edits. Nothing changes by it."""
        return self._between(lambda scheduler: scheduler.preview())

    @property
    def waiting(self) -> tuple[Waiting, ...]:
        """The queue, first to be admitted first; with n > 1 the children stand in it, "0_ID", "1_ID"."""
        return self._between(lambda scheduler: scheduler.queue())

    def move(self, request_id: str, place: int) -> None:
        """A waiting request goes to a place of the queue, 0 the first; those between move up or back by one.

        They trade arrival numbers and priorities for it.

        Raises:
            ValueError: it does not wait, there is no such place, or the scheduling policy looks elsewhere.
        """
        place = at_least("place", place, 0)

        def moved(scheduler: Scheduler) -> None:
            queue = list(scheduler.waiting)
            request = _named(request_id, queue)
            if place >= len(queue):
                raise ValueError(f"place is {place}, {len(queue)} requests wait: use 0 to {len(queue) - 1}")
            here = queue.index(request)
            part = queue[min(here, place) : max(here, place) + 1]
            part.remove(request)
            part.insert(place - min(here, place), request)
            if not scheduler.reorder(part):
                raise ValueError(
                    "the scheduling policy looks at something else than arrivals and priorities: change that"
                )

        self._between(moved)

    def drop(self, request_id: str) -> None:
        """A waiting request ends with finish_reason "abort".

        Raises:
            ValueError: it does not wait.
        """
        engine = self._engine()
        self._between(lambda scheduler: engine.abort([_named(request_id, list(scheduler.waiting))]))

    @property
    def token_budget(self) -> int:
        """Tokens a step may hold. Set it between steps: at most what the engine was opened with."""
        return self._engine().scheduler.limits.budget

    @token_budget.setter
    def token_budget(self, tokens: int) -> None:
        tokens = at_least("token_budget", tokens, 1)
        if tokens > self._most:
            raise ValueError(
                f"token_budget is {tokens}, this engine was built for {self._most}: open the LLM with"
                f" max_num_batched_tokens={tokens}"
            )
        self._between(lambda scheduler: scheduler.set_budget(tokens))

    @property
    def max_token_budget(self) -> int:
        """The most that it can be set to: what the engine was opened with."""
        return self._most

    def _between(self, action: Callable[[Scheduler], T]) -> T:
        engine = self._engine()
        with engine.undisturbed():
            engine.check()
            engine.drain()
            return action(engine.scheduler)

    def __repr__(self) -> str:
        return f"Scheduler({len(self.waiting)} waiting, budget {self.token_budget})"


def _named(request_id: str, queue: list[Request]) -> Request:
    for request in queue:
        if request.request_id == request_id:
            return request
    raise ValueError(f"request {request_id!r} does not wait: `llm.scheduler.waiting` names those who do")
