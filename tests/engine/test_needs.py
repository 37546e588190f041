"""Requests that need what is made elsewhere: they stand aside, hold nobody up, and lose no place by it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.fakes import FakeRunner, alone
from workbench.cache.hashing import hash_function
from workbench.cache.manager import CacheManager, KVGroup
from workbench.cache.pool import BlockPool
from workbench.engine.books import Limits
from workbench.engine.events import Emitter, Event, RequestAdmitted, RequestReady
from workbench.engine.loop import Engine
from workbench.engine.policies import policy_named
from workbench.engine.request import Request, Times
from workbench.engine.result import StepResult
from workbench.engine.scheduler import Scheduler
from workbench.params import SamplingParams

PROMPT = [7, 3, 9, 1, 4]
COUNT = 6


class Thing:
    """What a request needs: ready when it is made, or after somebody has waited for it so often."""

    def __init__(self, waits: int | None = None, failure: str | None = None) -> None:
        self.left = waits
        self.waited = 0
        self.on_wait: Callable[[], None] = lambda: None
        self.ready = False
        self._failure = failure

    @property
    def failure(self) -> str | None:
        return self._failure if self.ready else None

    def wait(self, seconds: float) -> None:
        assert not self.ready, "nobody waits for what is there"
        self.waited += 1
        self.on_wait()
        if self.left is not None:
            self.left -= 1
            self.ready = self.left <= 0


class World:
    """An engine over the fake runner, everything that was told, and whoever ended."""

    def __init__(self, depth: int = 0, rows: int = 8, blocks: int = 60, policy: str = "fcfs") -> None:
        cache = CacheManager(BlockPool(blocks), [KVGroup((0,))], 4, hash_function("sha256"), caching=True)
        self.emit, self.events = Emitter(), list[Event]()
        self.emit.add(self.events.append)
        self.scheduler = Scheduler(Limits(16, rows, 40), cache, policy_named(policy), lambda: 0.0, self.emit)
        self.engine: Engine[StepResult] = Engine(self.scheduler, FakeRunner(blocks, 4), depth)
        self.ended: list[Request] = []
        self.requests: list[Request] = []

    def add(self, need: Thing | None = None, priority: int = 0) -> Request:
        number = len(self.requests)
        request = Request(
            request_id=str(number),
            prompt_token_ids=np.array([*PROMPT, number], np.int32),
            params=SamplingParams(max_tokens=COUNT),
            max_length=len(PROMPT) + 1 + COUNT,
            seed=number,
            eos_token_ids=(),
            times=Times(0.0),
            tables=self.scheduler.cache.open(b""),
            priority=priority,
            need=need,
            listener=self.ended.append,
        )
        self.requests.append(request)
        self.scheduler.add(request)
        return request

    def run(self, *requests: Request) -> None:
        wanted = requests or self.requests
        self.engine.run_until(lambda: all(request.finished for request in wanted))
        self.scheduler.check()

    def admitted(self) -> list[str]:
        return [event.request_id for event in self.events if isinstance(event, RequestAdmitted)]

    def is_right(self, request: Request) -> bool:
        number = int(request.request_id)
        tokens = request.token_ids[request.num_prompt_tokens :].tolist()
        return tokens == alone([*PROMPT, number], COUNT, number)


@pytest.mark.parametrize("depth", [0, 1])
def test_who_waits_holds_nobody_up_and_comes_in_when_it_is_ready(depth: int) -> None:
    world, thing = World(depth, rows=1), Thing()
    first, second, third = world.add(thing), world.add(), world.add()
    world.run(second)
    assert world.admitted()[0] == "1"
    thing.ready = True
    world.run()
    assert world.ended.index(first) < world.ended.index(third) or world.admitted()[:2] == ["1", "2"]
    assert all(map(world.is_right, (first, second, third)))
    assert thing.waited == 0, "there was something to do all the time"


def test_once_ready_it_comes_before_all_that_came_later() -> None:
    world, thing = World(rows=1), Thing()
    world.add()
    world.add(thing)
    for _ in range(4):
        world.add()
    world.engine.advance()
    thing.ready = True
    world.run()
    assert world.admitted() == ["0", "1", "2", "3", "4", "5"]


def test_a_priority_counts_from_the_beginning() -> None:
    world, thing = World(rows=1, policy="priority"), Thing()
    world.add()
    world.add(priority=1)
    world.add(thing, priority=0)
    world.engine.advance()
    thing.ready = True
    world.run()
    assert world.admitted() == ["0", "2", "1"]


@pytest.mark.parametrize("depth", [0, 1])
def test_with_nothing_else_to_do_the_loop_waits_for_it_and_does_not_spin(depth: int) -> None:
    world = World(depth)
    thing = Thing(waits=5)
    request, other = world.add(thing), world.add()
    world.run()
    assert thing.waited == 5, "it waited until it was there, and not once more"
    assert world.is_right(request)
    assert world.is_right(other)


def test_what_is_ready_in_the_middle_of_the_queue_is_not_waited_for() -> None:
    world, never, there = World(), Thing(), Thing()
    world.add(never)
    second = world.add(there)
    there.ready = True
    world.run(second)
    assert never.waited == 0


def test_one_whose_need_fails_ends_with_the_reason_and_no_other_does() -> None:
    world, thing = World(), Thing(waits=1, failure="no such grammar")
    failing, twin, other = world.add(thing), world.add(thing), world.add()
    world.run()
    for request in (failing, twin):
        assert (request.finish_reason, request.stop_reason) == ("error", "no such grammar")
        assert len(request.token_ids) == request.num_prompt_tokens
    assert world.is_right(other)
    assert sorted(request.request_id for request in world.ended) == ["0", "1", "2"], "each is told once"
    assert world.scheduler.counts.finished == {"error": 2, "length": 1}


def test_a_step_by_hand_tells_of_who_ended_without_one() -> None:
    world, thing = World(), Thing(failure="none")
    request = world.add(thing)
    thing.ready = True
    commit = world.engine.step()
    assert commit is not None
    assert (commit.flight, commit.finished) == (None, [request])
    assert world.engine.step() is None


def test_an_abort_ends_the_wait() -> None:
    world, thing = World(), Thing()
    request = world.add(thing)
    thing.on_wait = lambda: world.engine.in_turn(lambda: world.engine.abort([request]))
    world.run()
    assert (request.finish_reason, thing.waited) == ("abort", 1)
    assert not world.scheduler.has_work
    assert len(world.scheduler.waiting) == 0


def test_another_thread_drives_its_own_while_one_waits() -> None:
    world, thing = World(), Thing()
    request, met = world.add(thing), threading.Event()
    thing.on_wait = lambda: met.wait(0.01) and None
    waiter = threading.Thread(target=world.run, args=(request,))
    waiter.start()
    with world.engine.turn:
        other = world.add()
    world.run(other)
    assert world.is_right(other)
    thing.ready = True
    met.set()
    waiter.join(20)
    assert not waiter.is_alive()
    assert world.is_right(request)


def test_what_it_needs_is_let_go_when_it_ends() -> None:
    world, thing = World(), Thing(waits=1)
    request = world.add(thing)
    world.run()
    assert request.need is None


def test_it_is_told_when_it_is_ready_and_only_then() -> None:
    world, late, there = World(), Thing(waits=1), Thing()
    there.ready = True
    world.add(late)
    world.add(there)
    world.add()
    world.run()
    assert [event.request_id for event in world.events if isinstance(event, RequestReady)] == ["0"]


@settings(max_examples=60, deadline=None)
@given(
    work=st.lists(st.tuples(st.sampled_from([None, 0, 1, 3, 7]), st.booleans()), min_size=1, max_size=10),
    depth=st.sampled_from([0, 1, 2]),
    rows=st.sampled_from([1, 3, 8]),
    blocks=st.sampled_from([8, 60]),
)
def test_tokens_do_not_depend_on_when_it_is_ready(
    work: list[tuple[int | None, bool]], depth: int, rows: int, blocks: int
) -> None:
    """A need is ready after so many steps of the others, or waits; in a small cache some are preempted."""
    world = World(depth, rows, blocks)
    things = [None if waits is None else Thing(waits) for waits, _ in work]
    requests = [world.add(thing) for thing in things]
    aborted = {request for request, (_, abort) in zip(requests, work, strict=True) if abort}
    for step in range(8):
        for thing in things:
            if thing is not None and thing.left == step:
                thing.ready = True
        if step == 2:
            world.engine.abort(aborted)
        if world.scheduler.has_work:
            world.engine.advance()
    for thing in things:
        if thing is not None and not thing.ready:
            thing.left = 1
    world.run()
    for request in requests:
        assert world.is_right(request) or request in aborted
        assert request.finish_reason == "length" or request in aborted
    assert not world.scheduler.has_work
    assert world.scheduler.cache.pool.num_held == 0
