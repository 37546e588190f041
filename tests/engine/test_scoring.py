"""Random workloads that want logprobs of their prompts: each is told of every token once, by who computed it.

The runner's logprobs are a hash of the tokens it finds in the blocks it was given, so that a hit too long, a
chunk told twice or a row of another request changes them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.fakes import FakeRunner, next_token
from tests.engine.test_laws import World, arrivals, expected, output, setups
from workbench.engine.plan import StepPlan
from workbench.engine.request import Request
from workbench.engine.result import Scores, StepResult

wants = st.lists(
    st.tuples(st.sampled_from([None, 0, 1, 3]), st.sampled_from([1, 1, 1, 2, 7])), min_size=12, max_size=12
)


def told(tokens: list[int], first: int, end: int, top: int) -> Scores:
    """What is to be told of the tokens [first, end)."""
    sampled = [next_token(np.array(tokens[: place + 1])) for place in range(first, end)]
    count = end - first
    return Scores(
        np.array(sampled, np.float32),
        np.array(sampled, np.int32),
        np.add.outer(sampled, np.arange(top)).astype(np.int32).reshape(count, top),
        np.add.outer(sampled, -np.arange(top)).astype(np.float32).reshape(count, top),
        np.empty((0, 0), np.float32),
    )


class ScoringRunner(FakeRunner):
    """Tells of prompt tokens that a chunk's positions predict."""

    def launch(self, plan: StepPlan) -> StepResult:
        result = super().launch(plan)
        for added in plan.added:
            self.rows[added.row]["added"] = added
        if plan.scoring is None:
            return result
        chunks = zip(*(column.tolist() for column in plan.scoring), strict=True)
        return result._replace(scores=tuple(self._told(plan, *chunk) for chunk in chunks))

    def _told(self, plan: StepPlan, line: int, first: int, end: int) -> Scores:
        state, added = self.rows[int(plan.rows[line])], self.rows[int(plan.rows[line])]["added"]
        start, count = int(plan.starts[line]), int(plan.counts[line])
        assert start < first < end <= start + count + 1, "a token is told of that no position here predicts"
        assert end <= added.num_prompt_tokens
        for group, window in enumerate(self.windows):
            seen = range(0 if window is None else max(0, first - window), end - 1)
            table = state["tables"][group]
            held = [self.store[group, table[p // self.block_size], p % self.block_size] for p in seen]
            assert held == [state["tokens"][p] for p in seen], "the blocks do not hold what predicts it"
        return told(state["tokens"], first, end, added.params.prompt_logprobs)


class ScoringWorld(World):
    def __init__(self, setup: dict, wants: list[tuple[int | None, int]]) -> None:
        super().__init__(setup)
        groups = len(setup["windows"])
        self.runner = ScoringRunner(setup["num_blocks"], setup["block_size"], groups, setup["windows"])
        self.wants = wants

    def request(self, number: int, *asked: Any) -> Request:
        request = super().request(number, *asked)
        top, first = self.wants[number]
        if top is not None:
            request.params.prompt_logprobs = top
            request.score_prompt(first)
        return request


def check(request: Request) -> None:
    """All that was wanted, in order, if the request came to its end."""
    if request.finish_reason in ("abort", "error"):
        return
    assert output(request) == expected(request)
    if not request.score_from:
        assert not request.scores
        return
    top, end = request.params.prompt_logprobs, request.num_prompt_tokens
    wanted = told(request.prompt_token_ids.tolist(), request.score_from, max(end, request.score_from), top)
    found = Scores.joined(request.scores)
    assert found.sampled.tolist() == wanted.sampled.tolist()
    assert found.ranks.tolist() == wanted.ranks.tolist()
    if len(wanted.sampled):
        assert found.top_ids.tolist() == wanted.top_ids.tolist()
        assert found.top_logprobs.tolist() == wanted.top_logprobs.tolist()


@settings(max_examples=150, deadline=None)
@given(setups(), arrivals, wants)
def test_every_prompt_is_told_of_as_if_it_were_alone(setup, workload, wants):
    world = ScoringWorld(setup, wants)
    for request in world.run(workload):
        check(request)
    assert world.scheduler.cache.pool.num_held == 0


@settings(max_examples=60, deadline=None)
@given(setups(), arrivals, wants, st.sets(st.integers(0, 20), max_size=3))
def test_a_failed_step_costs_nobody_else_a_logprob(setup, workload, wants, failures):
    world = ScoringWorld(setup, wants)
    world.runner.fail_at = failures
    for request in world.run(workload):
        check(request)


def test_what_was_told_is_told_again_without_being_computed():
    setup = {
        "windows": (None,), "block_size": 4, "num_blocks": 60, "budget": 64, "max_rows": 8, "long_prefill": 0,
        "policy": "fcfs", "caching": True, "depth": 0,
    }  # fmt: skip
    prompt = list(range(1, 19))
    world = ScoringWorld(setup, [(1, 1), (3, 1), (2, 1), (0, 6), (3, 1)])
    cached = []
    for number in range(5):
        request = world.request(number, prompt, 1, (), 0)
        world.scheduler.add(request)
        while world.scheduler.has_work:
            world.step()
        check(request)
        cached.append(request.num_cached_tokens)
    # The second wants more than is known; of four known blocks the last is computed, for what follows it.
    assert cached == [0, 0, 12, 12, 12]
