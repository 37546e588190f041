"""When it is decided that drafts go on: while a step is computed; and that they end: when it is over."""

from __future__ import annotations

import numpy as np

from tests.llm.asking import prompts
from tests.llm.conftest import Open
from tests.llm.drafters import MOST, TestDrafter, draft_by
from workbench import LLM, SamplingParams
from workbench.speculate.pace import HOLDS, Pace

PARAMS = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)


class Asked(Pace):
    """Everybody drafts; or, while a step that verifies is computed, nobody would."""

    def __init__(self, llm: LLM, discouraged: bool) -> None:
        super().__init__(64, MOST)
        self.flights = llm._engine.scheduler.flights
        self.discouraged = discouraged
        self.early: list[bool] = []  # of each decision: whether a step that verifies was computed

    def wanted(self, rows: np.ndarray, gone: int | None = None) -> np.ndarray:
        self.holds = HOLDS
        self.early.append(any(flight.plan.drafts is not None for flight in self.flights))
        return np.full(len(rows), 0 if self.discouraged and self.early[-1] else MOST)


def steps_that_verify(open_llm: Open, discouraged: bool) -> tuple[list[bool], Asked]:
    """Of one request's steps behind its prompt, whether each does; and who was asked."""
    given = prompts(1)
    llm = open_llm(async_scheduling=True)
    expected = list(llm.generate(given, PARAMS, use_tqdm=False)[0].outputs[0].token_ids)
    pace = Asked(llm, discouraged)
    draft_by(llm, TestDrafter("accurate", [[*given[0], *expected]]), pace=pace)
    llm.reset_prefix_cache()
    with llm.trace.record() as trace:
        assert list(llm.generate(given, PARAMS, use_tqdm=False)[0].outputs[0].token_ids) == expected
    return (trace.steps.accepted[1:] > 0).tolist(), pace


def test_that_drafts_go_on_is_decided_while_a_step_is_computed(open_llm: Open) -> None:
    verifying, pace = steps_that_verify(open_llm, discouraged=False)
    assert all(verifying[:-1])
    assert len(verifying) > HOLDS
    assert not any(pace.early[:2]), "before it entered, and behind"
    later = pace.early[2:]
    assert later
    assert all(later)


def test_that_they_end_is_decided_when_the_step_is_over(open_llm: Open) -> None:
    """What it said may have changed who is to draft."""
    verifying, pace = steps_that_verify(open_llm, discouraged=True)
    assert all(verifying[:-1])
    later = pace.early[2:]
    assert later == [True, False] * (len(later) // 2)
    assert later
