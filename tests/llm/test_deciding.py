"""When it is decided that drafts go on: while a step is computed; and that they end: when it is over."""

from __future__ import annotations

import numpy as np
import pytest

from tests.llm.asking import prompts
from tests.llm.conftest import Open
from tests.llm.drafters import MOST, TestDrafter, draft_by
from workbench import LLM, SamplingParams
from workbench.engine.drafting import Proposals
from workbench.speculate.drafter import Ask
from workbench.speculate.pace import HOLDS, Pace

PARAMS = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)


class Asked(Pace):
    """Everybody drafts, but while a step is computed `likely` is what seems worth it."""

    def __init__(self, llm: LLM, likely: list[int]) -> None:
        super().__init__(64, MOST)
        self.flights = llm._engine.scheduler.flights
        self.likely = likely
        self.early: list[bool] = []  # of each decision: whether a step that verifies was computed
        self.timed: list[int] = []  # drafts of each step that was timed

    def look(self) -> None:
        self.early.append(any(flight.plan.drafts is not None for flight in self.flights))

    def wanted(self, rows: np.ndarray, gone: int | None = None) -> np.ndarray:
        self.holds = HOLDS
        self.look()
        return np.full(len(rows), MOST)

    def by_chance(self, rows: np.ndarray) -> np.ndarray:
        self.look()
        return np.array(self.likely)

    def took(self, tokens: int, seconds: float, drafts: int) -> None:
        self.timed.append(drafts)


class EverySecondTime(TestDrafter):
    """Knows what comes, and says so every second time."""

    turn = 0

    def propose(self, ask: Ask) -> Proposals:
        self.turn += 1
        if self.turn % 2:
            return Proposals(np.zeros(len(ask.rows), np.int64), np.empty(0, np.int32))
        return super().propose(ask)


def steps_that_verify(
    open_llm: Open, likely: list[int], kind: type[TestDrafter] = TestDrafter
) -> tuple[list[bool], Asked]:
    """Of some requests' steps behind their prompts, whether each does; and who was asked."""
    given = prompts(len(likely))
    llm = open_llm(async_scheduling=True)
    expected = [list(o.outputs[0].token_ids) for o in llm.generate(given, PARAMS, use_tqdm=False)]
    pace = Asked(llm, likely)
    sequences = [[*prompt, *tokens] for prompt, tokens in zip(given, expected, strict=True)]
    draft_by(llm, kind("accurate", sequences), pace=pace)
    llm.reset_prefix_cache()
    with llm.trace.record() as trace:
        outputs = llm.generate(given, PARAMS, use_tqdm=False)
    assert [list(o.outputs[0].token_ids) for o in outputs] == expected
    return (trace.steps.accepted[1:] > 0).tolist(), pace


def test_that_drafts_go_on_is_decided_while_a_step_is_computed(open_llm: Open) -> None:
    verifying, pace = steps_that_verify(open_llm, [MOST])
    assert all(verifying[:-1])
    assert len(verifying) > HOLDS
    assert not any(pace.early[:2]), "before it entered, and behind"
    later = pace.early[2:]
    assert later
    assert all(later)


@pytest.mark.parametrize("likely", [[0], [MOST, 0]], ids=["its", "that of one of two"])
def test_an_end_is_decided_when_the_step_is_over(open_llm: Open, likely: list[int]) -> None:
    """What it said may have changed who is to draft."""
    verifying, pace = steps_that_verify(open_llm, likely)
    assert all(verifying[:-1])
    later = pace.early[2:]
    assert later == [True, False] * (len(later) // 2)
    assert later


def test_steps_are_timed_where_a_drafter_is_silent_now_and_then(open_llm: Open) -> None:
    """A step that verifies is timed from the end of the one before, whoever decided what meanwhile."""
    verifying, pace = steps_that_verify(open_llm, [MOST], EverySecondTime)
    assert sum(verifying) >= 2 * HOLDS - 2
    assert sum(drafts > 0 for drafts in pace.timed) >= sum(verifying) - 1


class Always(Pace):
    """Everybody drafts; what seems worth it while a step is computed is what was seen."""

    def wanted(self, rows: np.ndarray, gone: int | None = None) -> np.ndarray:
        self.holds = HOLDS
        return np.full(len(rows), MOST)


@pytest.mark.parametrize("steps", range(1, 3 * HOLDS))
def test_the_last_request_may_be_aborted_while_any_step_verifies(open_llm: Open, steps: int) -> None:
    """Nobody runs then, and what follows is still to be decided."""
    given = prompts(1)
    llm = open_llm(async_scheduling=True)
    expected = list(llm.generate(given, PARAMS, use_tqdm=False)[0].outputs[0].token_ids)
    draft_by(llm, TestDrafter("accurate", [[*given[0], *expected]]), pace=Always(64, MOST))
    llm.add_request(given[0], PARAMS)
    for _ in range(steps):
        llm._engine.advance()
    llm._engine.abort(list(llm._engine.scheduler.running.requests))  # as where nobody reads a stream any more
    while llm._engine.scheduler.has_work:
        llm._engine.advance()
    assert list(llm.generate(given, PARAMS, use_tqdm=False)[0].outputs[0].token_ids) == expected
