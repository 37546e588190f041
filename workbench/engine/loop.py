"""The loop: plan, launch, collect, commit. Knows neither what a plan holds nor how it is computed."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from workbench.engine.flight import Commit
from workbench.engine.plan import StepPlan
from workbench.engine.request import Need, Request
from workbench.engine.result import StepResult
from workbench.engine.scheduler import Scheduler
from workbench.engine.turns import FairLock, InterruptsDeferred
from workbench.errors import DeviceLost

logger = logging.getLogger(__name__)

PATIENCE = 0.02  # seconds between two looks at what else there is to do, an abort say, while all wait

Ticket = TypeVar("Ticket")


class Runner(Protocol[Ticket]):
    """Computes plans, in order. The seam behind which a device, a simulator or another rank stands."""

    def launch(self, plan: StepPlan) -> Ticket:
        """Start a step; it may rely on tokens of steps launched before and not collected yet."""
        ...

    def collect(self, ticket: Ticket) -> StepResult:
        """Wait for a step. Tickets are collected in the order of their launch."""
        ...

    def reset(self) -> None:
        """Forget the batch and every step in flight; the next plan brings all its requests anew."""
        ...


class Engine(Generic[Ticket]):
    """Drives a scheduler and a runner. `depth` steps may be in flight while the next one is planned."""

    def __init__(self, scheduler: Scheduler, runner: Runner[Ticket], depth: int) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.depth = depth
        self.turn = FairLock()
        self.lost: str | None = None  # why no step will follow
        self._tickets: deque[Ticket | Exception] = deque()  # oldest first
        self._later: deque[Callable[[], None]] = deque()  # what could not be done in the middle of a step

    def step(self) -> Commit | None:
        """One step, by itself: nothing is in flight before it or after it. None when there is no work."""
        self.drain()
        return self._advance(depth=0)

    def advance(self) -> Commit | None:
        """Launch the next step, then commit the oldest one once more than `depth` are in flight."""
        return self._advance(self.depth)

    def check(self) -> None:
        """Raise RuntimeError when the device was lost."""
        if self.lost is not None:
            raise RuntimeError(self.lost)

    def _advance(self, depth: int) -> Commit | None:
        self.check()
        self._catch_up()
        # Behind a launch that failed the runner's batch is not what the next plan builds upon: launch no more
        # until it has been told and reset, or blocks are written that are not the plan's.
        broken = bool(self._tickets) and isinstance(self._tickets[-1], Exception)
        refused = self._wake()
        plan = None if broken else self._plan()
        if turned_away := self.scheduler.take_turned_away():
            self._tell((), turned_away)
        if plan is not None:
            self._tickets.append(self._launch(plan))
        commit = None
        if self._tickets and (plan is None or len(self._tickets) > depth):
            commit = self._settle()
        self._catch_up()
        self.scheduler.check_observers()
        return _with(refused, commit)

    def _wake(self) -> list[Request]:
        """Waiting requests that end, for what they need cannot be had."""
        refused = self.scheduler.wake()
        self._tell((), refused)
        return refused

    def _catch_up(self) -> None:
        while self._later:
            self._later.popleft()()

    def _plan(self) -> StepPlan | None:
        try:
            return self.scheduler.plan()
        except BaseException:  # a policy's own fault, say: half a plan is none
            self._tickets.clear()
            self.runner.reset()
            self._tell((), self.scheduler.start_over("interrupted"))
            raise

    def _launch(self, plan: StepPlan) -> Ticket | Exception:
        try:
            return self.runner.launch(plan)
        except Exception as error:  # noqa: BLE001 - kept until the steps before it are committed
            return error
        except BaseException:
            self._recover("interrupted")
            raise

    def _settle(self) -> Commit | None:
        """Collect the oldest step and commit it; if it failed, its requests end and the engine goes on."""
        ticket = self._tickets.popleft()
        try:
            if isinstance(ticket, Exception):
                raise ticket
            result = self.runner.collect(ticket)
        except DeviceLost as error:
            return self._end(error)
        except Exception as error:
            index = self.scheduler.flights[0].plan.index
            logger.exception("step %d failed; its requests end with finish_reason 'error'", index)
            return self._recover(f"{type(error).__name__}: {error}")
        except BaseException:
            self._recover("interrupted")
            raise
        commit = self.scheduler.commit(result)
        self._tell(commit.streamed, commit.finished)
        return commit

    def _recover(self, error: str) -> Commit:
        self._tickets.clear()
        self.runner.reset()
        failure = self.scheduler.fail(error)
        self._tell((), failure.finished)
        return failure

    def _end(self, error: DeviceLost) -> Commit:
        """The device is gone: every request ends with "error", and the runner is not asked again."""
        index = self.scheduler.flights[0].plan.index
        self.lost = (
            f"the device failed while step {index} was running ({error}): this engine has ended; close() it,"
            " and start again in a new process"
        )
        logger.error("%s", self.lost)
        self._tickets.clear()
        failure = self.scheduler.end_all(str(error))
        self._tell((), failure.finished)
        return failure

    def drain(self) -> None:
        """Commit everything in flight."""
        while self._tickets:
            self._settle()

    def drain_if_idle(self) -> None:
        """Commit what is in flight where it computes for nobody."""
        if not self.scheduler.running.count and not self.scheduler.waiting.num_ready:
            self.drain()

    def wait(self, need: Need | None) -> None:
        """Out of turn: wait a moment for what everybody waits for, if there is such a thing."""
        if need is not None:
            need.wait(PATIENCE)

    def wait_for_work(self) -> None:
        """Return when there is something to do or nobody waits; Ctrl-C comes at once."""
        while True:
            with self.undisturbed():
                need = self.scheduler.stalled_by
            if need is None:
                return
            self.wait(need)

    def abort(self, requests: Iterable[Request]) -> None:
        """End requests with finish_reason "abort"; those that have ended are left alone."""
        ending = [request for request in requests if not request.finished]
        self.scheduler.abort(ending)
        self._tell((), ending)

    @contextmanager
    def undisturbed(self) -> Iterator[InterruptsDeferred]:
        """This thread's turn. Ctrl-C comes when it is over: no book is left half written."""
        with InterruptsDeferred() as interrupts, self.turn:
            yield interrupts
            self.scheduler.check_observers()

    def in_turn(self, action: Callable[[], None]) -> None:
        """Run `action` in a turn of this thread; in the middle of a step, as soon as that is over.

        A generator that is collected as garbage ends its request, and the collector may run anywhere.
        """
        if self.turn.mine:
            self._later.append(action)
            return
        with self.undisturbed():
            action()

    def run_until(self, done: Callable[[], bool]) -> None:
        """Drive steps until `done()`, letting other threads have their turns; Ctrl-C comes between steps."""
        with InterruptsDeferred() as interrupts:
            while not done():
                with self.turn:
                    if done():
                        break
                    assert self.scheduler.has_work, "somebody waits for a request that is not in the engine"
                    self.advance()
                    need = None if done() else self.scheduler.stalled_by
                interrupts.check()
                self.wait(need)
            with self.turn:
                self.drain_if_idle()

    @staticmethod
    def _tell(streamed: Iterable[Request], finished: Iterable[Request]) -> None:
        """Tell those who listen: of each new token, and once of the end; all of them, even if one raises."""
        errors = []
        for request in (*(each for each in streamed if not each.finished), *finished):
            try:
                if request.listener is not None:
                    request.listener(request)
            except Exception as error:  # noqa: BLE001 - raised once the others have been told
                errors.append(error)
        if errors:
            raise errors[0]


def _with(refused: list[Request], commit: Commit | None) -> Commit | None:
    """The commit, and who ended beside it."""
    if not refused:
        return commit
    if commit is None:
        return Commit(None, (), (), refused)
    return commit._replace(finished=[*refused, *commit.finished])
