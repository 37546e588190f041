"""Random workloads through scheduler and cache: what has to hold after every step, and at the end."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.fakes import NO_ADAPTER, VOCABULARY, FakeRunner, FakeSpeculation, alone
from workbench.cache.hashing import hash_function
from workbench.cache.manager import CacheManager, KVGroup
from workbench.cache.pool import BlockPool
from workbench.engine.adapter_turns import Adapters
from workbench.engine.books import Limits
from workbench.engine.events import Emitter, StepCommitted
from workbench.engine.policies import policy_named
from workbench.engine.request import Request, Times
from workbench.engine.result import Failure, StepResult
from workbench.engine.scheduler import Scheduler
from workbench.params import SamplingParams, StructuredOutputsParams

MAX_LENGTH = 40
PATIENCE = 3000  # steps within which every workload here must end, or somebody starves


@st.composite
def setups(draw):
    windows = draw(st.sampled_from([(None,), (None, 5), (6,), (None, 3, 9)]))
    block_size = draw(st.sampled_from([1, 2, 4]))
    least = -(-MAX_LENGTH // block_size) * len(windows)  # one request always fits
    return {
        "windows": windows,
        "block_size": block_size,
        "num_blocks": least + draw(st.integers(0, 2 * least)),
        "budget": draw(st.sampled_from([8, 16, 64])),
        "max_rows": draw(st.sampled_from([1, 2, 4, 8])),
        "long_prefill": draw(st.sampled_from([0, 0, 3])),
        "policy": draw(st.sampled_from(["fcfs", "priority"])),
        "caching": draw(st.booleans()),
        "depth": draw(st.sampled_from([0, 1, 2])),
        "drafter": draw(st.sampled_from([None, None, "accurate", "useless", "adversarial"])),
    }


prompts = st.builds(
    lambda shared, own: ([7, 3, 9, 1, 4, 4, 2, 8, 6, 5, 11, 13, 17, 19, 23, 29][:shared] + own)[:30],
    st.integers(0, 16),
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20),
)
ALONE = {
    "windows": (None,),
    "block_size": 4,
    "num_blocks": 60,
    "budget": 64,
    "max_rows": 8,
    "long_prefill": 0,
    "policy": "fcfs",
    "caching": True,
    "depth": 0,
}

arrivals = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": prompts,
            "count": st.integers(1, 10),
            "stop": st.sampled_from([(), (), (5,), (5, 6, 7, 8, 9, 10, 11, 12)]),
            "priority": st.integers(0, 2),
            "at": st.integers(0, 12),  # step at which it arrives
            "abort_at": st.sampled_from([None, None, None, 1, 4, 9]),
            "constraint": st.sampled_from([None, None, StructuredOutputsParams(regex="a")]),
        }
    ),
    min_size=1,
    max_size=12,
)


class World:
    """A scheduler, a fake runner, and a loop that checks the laws after every step."""

    def __init__(self, setup: dict, adapters: Adapters | None = None) -> None:
        groups = [KVGroup((layer,), window) for layer, window in enumerate(setup["windows"])]
        pool = BlockPool(setup["num_blocks"])
        digest = hash_function("sha256")
        cache = CacheManager(pool, groups, setup["block_size"], digest, caching=setup["caching"])
        self.limits = Limits(setup["budget"], setup["max_rows"], MAX_LENGTH, setup["long_prefill"])
        self.emit = Emitter()
        self.ticks = 0.0
        kind = setup.get("drafter")
        self.speculation = None if kind is None else FakeSpeculation(kind)
        self.scheduler = Scheduler(
            self.limits,
            cache,
            policy_named(setup["policy"]),
            self.clock,
            self.emit,
            self.speculation,
            adapters,
        )
        self.runner = FakeRunner(setup["num_blocks"], setup["block_size"], len(groups), setup["windows"])
        self.depth = setup["depth"]
        self.runner.forces = not self.depth  # with a step in flight, what follows has been planned
        self.tickets: deque = deque()
        self.num_scheduled = 0
        self.steps = 0

    def clock(self) -> float:
        self.ticks += 1.0
        return self.ticks

    def request(
        self,
        number: int,
        prompt: list[int],
        count: int,
        stop: tuple,
        priority: int,
        constraint: StructuredOutputsParams | None = None,
        adapter: int | None = None,
    ) -> Request:
        return Request(
            request_id=str(number),
            prompt_token_ids=np.array(prompt, np.int32),
            params=SamplingParams(max_tokens=count, structured_outputs=constraint),
            max_length=min(len(prompt) + count, MAX_LENGTH),
            seed=number,
            eos_token_ids=stop,
            times=Times(self.clock()),
            tables=self.scheduler.cache.open(b"" if adapter is None else bytes([adapter])),
            priority=priority,
            adapter=adapter,
        )

    def step(self) -> None:
        """Plan, launch, and commit once more than `depth` steps are in flight; a failed step is recovered."""
        plan = self.scheduler.plan()
        if plan is not None:
            self.num_scheduled += plan.num_tokens
            try:
                self.tickets.append(self.runner.launch(plan))
            except RuntimeError as error:
                while self.tickets:
                    self.scheduler.commit(self.runner.collect(self.tickets.popleft()))
                self.runner.reset()
                self.scheduler.fail(str(error))
        if self.tickets and (plan is None or len(self.tickets) > self.depth):
            self.scheduler.commit(self.runner.collect(self.tickets.popleft()))
        self.scheduler.check()
        self.steps += 1
        assert self.steps < PATIENCE, "somebody starves"

    def run(self, workload: list[dict]) -> list[Request]:
        made = [
            self.request(
                number,
                item["prompt"],
                item["count"],
                item["stop"],
                item["priority"],
                item.get("constraint"),
                item.get("adapter"),
            )
            for number, item in enumerate(workload)
        ]
        queued: set[int] = set()
        while len(queued) < len(made) or self.scheduler.has_work:
            for number, (item, request) in enumerate(zip(workload, made, strict=True)):
                if number not in queued and item["at"] <= self.steps:
                    self.scheduler.add(request)
                    queued.add(number)
                if item["abort_at"] is not None and self.steps == item["at"] + item["abort_at"]:
                    self.scheduler.abort([request] if number in queued else [])
            self.step()
        return made


def expected(request: Request) -> list[int]:
    count = request.max_length - request.num_prompt_tokens
    adapter = NO_ADAPTER if request.adapter is None else request.adapter
    return alone(request.prompt_token_ids.tolist(), count, request.seed, request.stop_ids, adapter)


def output(request: Request) -> list[int]:
    return request.token_ids[request.num_prompt_tokens :].tolist()


@settings(max_examples=150, deadline=None)
@given(setups(), arrivals)
def test_every_request_ends_with_the_tokens_it_would_have_had_alone(setup, workload):
    world = World(setup)
    for request in world.run(workload):
        if request.finish_reason == "abort":
            assert output(request) == expected(request)[: len(output(request))]
        else:
            assert output(request) == expected(request)
            assert request.finish_reason == ("stop" if output(request)[-1] in request.stop_ids else "length")
    assert world.scheduler.cache.pool.num_held == 0


@settings(max_examples=60, deadline=None)
@given(setups(), arrivals, st.sets(st.integers(0, 20), max_size=3))
def test_a_failed_step_ends_its_own_requests_and_changes_no_others(setup, workload, failures):
    world = World(setup)
    world.runner.fail_at = failures
    for request in world.run(workload):
        if request.finish_reason in ("abort", "error"):
            assert output(request) == expected(request)[: len(output(request))]
        else:
            assert output(request) == expected(request)
    assert world.scheduler.cache.pool.num_held == 0


@settings(max_examples=100, deadline=None)
@given(setups(), arrivals, st.dictionaries(st.integers(0, 11), st.integers(1, 6), max_size=4))
def test_a_row_that_failed_ends_its_own_request_and_changes_no_others(setup, workload, failures):
    """`failures`: request -> the token of its output that cannot be sampled; a runner may say so twice."""
    world = World(setup)
    collect = world.runner.collect

    def failing(ticket: StepResult) -> StepResult:
        return collect(ticket)._replace(failed=tuple(world.runner.failed.pop(ticket.index, ())))

    world.runner.collect = failing
    world.runner.failing = failures
    for number, request in enumerate(world.run(workload)):
        assert output(request) == expected(request)[: len(output(request))]
        if request.finish_reason == "error":
            assert request.stop_reason == "no token"
            assert len(output(request)) == failures[number] - 1
        elif request.finish_reason != "abort":
            assert output(request) == expected(request)
            assert number not in failures or len(output(request)) < failures[number]
    assert world.scheduler.cache.pool.num_held == 0


@settings(max_examples=60, deadline=None)
@given(setups(), arrivals)
def test_scheduled_tokens_add_up(setup, workload):
    """Sum of scheduled = sum(prompt - cached) + sum(outputs - 1) + recomputed + rejected + overshoot."""
    world = World(setup)
    workload = [{**item, "abort_at": None} for item in workload]
    reused: dict[str, int] = {}
    overshoot = [0]

    def observe(event) -> None:
        if hasattr(event, "num_reached"):
            fresh = max(0, event.num_cached_tokens - event.num_reached)
            reused[event.request_id] = reused.get(event.request_id, 0) + fresh
        if isinstance(event, StepCommitted):
            overshoot[0] += event.overshoot

    world.emit.add(observe)
    made = world.run(workload)
    needed = sum(r.num_prompt_tokens - reused[r.request_id] + len(output(r)) - 1 for r in made)
    recomputed = sum(r.num_recomputed for r in made)
    rejected = sum(r.num_rejected for r in made)
    assert world.num_scheduled == needed + recomputed + rejected + overshoot[0]
    assert overshoot[0] == sum(r.num_overshoot for r in made)


@settings(max_examples=40, deadline=None)
@given(setups(), arrivals)
def test_observers_do_not_change_the_run(setup, workload):
    def plans(observed: bool) -> list[tuple]:
        world, seen = World(setup), []
        launch = world.runner.launch

        def note(plan):
            columns = (plan.rows, plan.starts, plan.counts, plan.removed)
            seen.append(tuple(column.tolist() for column in columns))
            return launch(plan)

        world.runner.launch = note
        if observed:
            world.emit.add(lambda event: None)
        world.run(workload)
        return seen

    assert plans(observed=True) == plans(observed=False)


@settings(max_examples=40, deadline=None)
@given(setups(), arrivals)
def test_an_end_by_length_never_overshoots(setup, workload):
    world = World({**setup, "num_blocks": 400})  # nobody is preempted
    made = world.run([{**item, "stop": (), "abort_at": None} for item in workload])
    assert all(request.num_overshoot == 0 for request in made)


def test_a_preemption_really_happens_and_tokens_stay_right():
    setup = {
        "windows": (None,), "block_size": 2, "num_blocks": 22, "budget": 64, "max_rows": 8, "long_prefill": 0,
        "policy": "fcfs", "caching": True, "depth": 1,
    }  # fmt: skip
    item = {"count": 10, "stop": (), "priority": 0, "at": 0, "abort_at": None}
    world = World(setup)
    made = world.run([{**item, "prompt": [n, 2, 3, 4, 5, 6, 7, 8]} for n in range(6)])
    assert sum(request.num_preemptions for request in made) > 0
    assert [output(request) for request in made] == [expected(request) for request in made]


def test_requests_of_one_plan_share_the_blocks_that_plan_writes():
    setup = {
        "windows": (None,), "block_size": 4, "num_blocks": 60, "budget": 64, "max_rows": 8, "long_prefill": 0,
        "policy": "fcfs", "caching": True, "depth": 0,
    }  # fmt: skip
    world = World(setup)
    prompt = list(range(17))
    made = world.run(
        [{"prompt": prompt, "count": 3, "stop": (), "priority": 0, "at": 0, "abort_at": None}] * 3
    )
    assert [request.num_cached_tokens for request in made] == [0, 16, 16]
    assert [output(request) for request in made] == [expected(request) for request in made]


def test_the_urgent_request_is_admitted_first():
    setup = {
        "windows": (None,), "block_size": 4, "num_blocks": 60, "budget": 64, "max_rows": 1, "long_prefill": 0,
        "policy": "priority", "caching": True, "depth": 0,
    }  # fmt: skip
    world = World(setup)
    item = {"count": 2, "stop": (), "at": 0, "abort_at": None}
    made = world.run([{**item, "prompt": [n], "priority": 5 - n} for n in range(5)])
    assert sorted(made, key=lambda request: request.times.first_token) == made[::-1]


class Moody:
    """A policy that fails when told to."""

    def __init__(self, answers: list) -> None:
        self.answers = answers

    def key(self, request: Request):
        answer = self.answers[request.arrival]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize("bad", [ValueError("moody"), "a key of another type"])
def test_a_policy_that_raises_turns_one_request_away_and_no_other(bad):
    world = World({**ALONE, "policy": Moody([1, bad, 2])})
    made = [world.request(number, [number, 2, 3], 3, (), 0) for number in range(3)]
    world.scheduler.add(made[0])
    with pytest.raises((ValueError, TypeError)):
        world.scheduler.add(made[1])
    world.scheduler.abort([made[1]])
    world.scheduler.add(made[2])
    while world.scheduler.has_work:
        world.step()
    assert made[1].finish_reason == "abort"
    assert [output(request) for request in (made[0], made[2])] == [expected(made[0]), expected(made[2])]


def test_a_stop_check_that_raises_ends_its_own_request():
    def broken(token_ids) -> None:
        raise UnicodeError("no such character")

    world = World(ALONE)
    made = [world.request(number, [number, 2, 3], 3, (), 0) for number in range(2)]
    made[0].stop_check = broken
    for request in made:
        world.scheduler.add(request)
    while world.scheduler.has_work:
        world.step()
    assert (made[0].finish_reason, output(made[0])) == ("error", expected(made[0])[:1])
    assert (made[1].finish_reason, output(made[1])) == ("length", expected(made[1]))


def test_a_request_whose_grammar_has_no_way_on_ends_alone():
    world = World(ALONE)
    made = [world.request(number, [number, 2, 3], 3, (), 0) for number in range(2)]
    for request in made:
        world.scheduler.add(request)
    plan = world.scheduler.plan()
    result = world.runner.collect(world.runner.launch(plan))
    commit = world.scheduler.commit(result._replace(failed=(Failure(made[0].row, "no way on"),)))
    assert commit.finished == [made[0]]
    while world.scheduler.has_work:
        world.step()
    assert [request.finish_reason for request in made] == ["error", "length"]
    assert output(made[1]) == expected(made[1])
