"""A step that is looked at before it is taken, a queue and a budget that are edited between steps."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.test_laws import ALONE, World, arrivals, expected, output, setups
from workbench.engine.events import RequestPreempted, StepPlanned
from workbench.engine.preview import Preview, Waiting
from workbench.engine.request import Request, State

PLAIN = {"count": 6, "stop": (), "priority": 0, "at": 0, "abort_at": None}
SCARCE: dict[str, Any] = {**ALONE, "block_size": 2, "num_blocks": 22}


class Watched(World):
    """A world that looks at every step before it takes it, and edits between steps."""

    def __init__(self, setup: dict, edits: list[int] | None = None) -> None:
        super().__init__({**setup, "depth": 0})
        self.edits = list(edits or [])
        self.previews: list[Preview] = []
        self.plans: list[StepPlanned] = []
        self.preempted: list[str] = []
        self.emit.add(self._note)

    def _note(self, event: object) -> None:
        if isinstance(event, StepPlanned):
            self.plans.append(event)
        elif isinstance(event, RequestPreempted):
            self.preempted.append(event.request_id)

    def step(self) -> None:
        self.edit()
        count, told = len(self.plans), len(self.preempted)
        seen = self.scheduler.preview()
        assert (len(self.plans), len(self.preempted)) == (count, told), "a preview told observers"
        self.scheduler.check()
        assert self.scheduler.preview() == seen
        super().step()
        if seen.index >= 0:
            self.check(seen, self.plans[-1], self.preempted[told:])
            self.previews.append(seen)
        else:
            assert len(self.plans) == count

    def check(self, seen: Preview, planned: StepPlanned, preempted: list[str]) -> None:
        plan = planned.plan
        assert seen.num_scheduled_tokens == dict(zip(planned.request_ids, plan.counts.tolist(), strict=True))
        assert [share.start for share in seen.shares] == plan.starts.tolist()
        assert [share.samples for share in seen.shares] == plan.samples.tolist()
        admitted = {share.request_id for share in seen.shares if share.admitted}
        assert admitted == {added.request_id for added in plan.added}
        assert list(seen.preempted) == preempted
        assert (seen.index, seen.budget) == (plan.index, plan.budget)
        assert seen.blocks_free == planned.blocks_free
        assert len(seen.waiting) == planned.waiting
        grown = sum(len(growth.rows) for growth in plan.grown)
        tables = sum(int((table > 0).sum()) for added in plan.added for table in added.blocks)
        hits = sum(self.blocks_of(share.cached) for share in seen.shares)
        assert sum(share.blocks for share in seen.shares) >= grown + tables - hits

    def blocks_of(self, tokens: int) -> int:
        cache = self.scheduler.cache
        return tokens // cache.block_size * len(cache.groups)

    def edit(self) -> None:
        """The budget goes somewhere, and somebody in the queue does."""
        if not self.edits:
            return
        number = self.edits.pop(0)
        self.scheduler.set_budget(1 + number % self.limits.budget)
        queue = list(self.scheduler.waiting)
        if len(queue) > 1:
            order = queue[number % len(queue) :] + queue[: number % len(queue)]
            assert self.scheduler.reorder(order)
            assert list(self.scheduler.waiting) == order


@settings(max_examples=30, deadline=None)
@given(setups(), arrivals)
def test_the_next_step_is_the_one_that_was_shown_and_showing_it_changes_nothing(setup, workload):
    watched, plain = Watched(setup), World({**setup, "depth": 0})
    plans: list[StepPlanned] = []
    plain.emit.add(lambda event: plans.append(event) if isinstance(event, StepPlanned) else None)
    assert [output(r) for r in watched.run(workload)] == [output(r) for r in plain.run(workload)]
    assert [event.plan.counts.tolist() for event in watched.plans] == [e.plan.counts.tolist() for e in plans]
    tables = [[a.blocks for event in events for a in event.plan.added] for events in (watched.plans, plans)]
    assert str(tables[0]) == str(tables[1])


@settings(max_examples=30, deadline=None)
@given(setups(), arrivals, st.lists(st.integers(0, 1000), max_size=40))
def test_edits_of_queue_and_budget_change_no_tokens(setup, workload, edits):
    world = Watched(setup, edits)
    for request in world.run(workload):
        aborted = request.finish_reason == "abort"
        assert output(request) == expected(request)[: len(output(request)) if aborted else None]
    assert world.scheduler.cache.pool.num_held == 0


def test_a_preview_shows_who_is_admitted_what_is_cached_and_who_waits():
    world = Watched({**ALONE, "max_rows": 2})
    prompt = list(range(17))
    made = [world.request(number, prompt, 3, (), 0) for number in range(3)]
    for request in made:
        world.scheduler.add(request)
    seen = world.scheduler.preview()
    first, second = seen.shares
    assert (first.tokens, first.cached, first.blocks, first.admitted) == (17, 0, 5, True)
    assert (second.tokens, second.cached, second.blocks, second.admitted) == (1, 16, 1, True)
    assert [waiting.request_id for waiting in seen.queue] == [request.request_id for request in made]
    assert seen.waiting == (Waiting(made[2].request_id, 17, 0, False),)
    assert seen.blocks_free == seen.num_blocks - 6
    assert made[0].state is State.WAITING


def test_a_preview_says_who_will_be_preempted_and_what_is_evicted():
    world = Watched(SCARCE)
    world.run([{**PLAIN, "count": 10, "prompt": [n, 2, 3, 4, 5, 6, 7, 8]} for n in range(6)])
    assert world.preempted
    assert [name for seen in world.previews for name in seen.preempted] == world.preempted
    assert sum(seen.evicted for seen in world.previews) > 0
    assert any(entry.preempted for seen in world.previews for entry in seen.waiting)
    shares = [share for seen in world.previews for share in seen.shares]
    assert any(share.decode < share.tokens and share.start + share.tokens > 8 for share in shares)  # again


def test_those_who_are_moved_trade_places_and_the_others_keep_theirs():
    world = Watched({**ALONE, "policy": "priority"})
    made = [world.request(number, [number], 2, (), number // 2) for number in range(5)]
    for request in made:
        world.scheduler.add(request)
    assert world.scheduler.reorder([made[4], made[0]])
    assert list(world.scheduler.waiting) == [made[n] for n in (4, 1, 2, 3, 0)]
    assert (made[4].priority, made[0].priority) == (0, 2)


class Longest:
    """Looks at neither arrivals nor priorities."""

    def key(self, request: Request) -> int:
        return -request.num_prompt_tokens


def test_a_policy_that_looks_elsewhere_is_not_talked_out_of_it():
    world = Watched({**ALONE, "policy": Longest()})
    made = [world.request(number, [1] * (5 - number), 2, (), 0) for number in range(3)]
    for request in made:
        world.scheduler.add(request)
    held = [(request.priority, request.arrival) for request in made]
    assert not world.scheduler.reorder(made[::-1])
    assert list(world.scheduler.waiting) == made
    assert [(request.priority, request.arrival) for request in made] == held


def test_a_preview_of_a_large_cache_is_quick():
    world = World({**ALONE, "num_blocks": 100_000, "block_size": 4, "max_rows": 64})
    for number in range(80):
        world.scheduler.add(world.request(number, [number] * 30, 5, (), 0))
    world.step()
    times = []
    for _ in range(3):
        began = time.process_time()
        world.scheduler.preview()
        times.append(time.process_time() - began)
    assert min(times) < 0.25  # a click waits for it


def test_who_waits_is_told_in_the_order_of_admission():
    world = World({**ALONE, "policy": "priority"})
    made = [world.request(number, [number] * 4, 2, (), 3 - number) for number in range(3)]
    for request in made:
        world.scheduler.add(request)
    names = [waiting.request_id for waiting in world.scheduler.queue()]
    assert names == [request.request_id for request in made[::-1]]


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_somebody_who_runs_cannot_be_moved(policy: str):
    world = World({**ALONE, "policy": policy})
    request = world.request(0, [1, 2], 5, (), 0)
    world.scheduler.add(request)
    world.step()
    with pytest.raises(AssertionError, match="does not wait"):
        world.scheduler.reorder([request])
