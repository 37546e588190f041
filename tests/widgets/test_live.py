"""Widgets on a real engine: they follow a run, survive its end, and hold what its trace holds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.trace.test_growing import NAMES, equal
from workbench import LLM, SamplingParams, StructuredOutputsParams
from workbench.trace.growing import GrowingTables
from workbench.widgets import CacheMap, Dashboard, PrefixTree, Requests, Stepper, TokenBudget, linked

PROMPTS = [f"Write a story about fox {'very ' * (k % 5)}number {k}.\n\n" for k in range(6)]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("zoo/wren-1m", max_num_batched_tokens=32, max_num_seqs=3) as llm:
        yield llm


def test_pictures_come_while_generate_runs_and_the_last_one_is_whole(llm: LLM) -> None:
    widgets = linked(llm, TokenBudget, Requests, CacheMap, Dashboard, PrefixTree)
    seen: list[str] = []
    for widget in widgets:
        widget._place.observe(lambda change: seen.append(change["new"]), "value")
    llm.generate(PROMPTS, SamplingParams(max_tokens=40, ignore_eos=True), use_tqdm=False)
    assert len(seen) > 2
    assert len(widgets[0].feed["steps"]["step"]) == len(llm.trace.columns.steps["step"])
    for widget in widgets:
        assert "<svg" in widget._place.value
        widget.close()


def test_a_widget_made_afterwards_shows_what_happened(llm: LLM) -> None:
    llm.generate(PROMPTS[:2], SamplingParams(max_tokens=4), use_tqdm=False)
    widget = TokenBudget(llm)
    assert widget.static() == TokenBudget(llm.trace).static()
    assert "<svg" in widget.static()


def test_tokens_come_the_same_whoever_watches(llm: LLM) -> None:
    params = SamplingParams(max_tokens=12, temperature=0.8, seed=3)

    def tokens() -> list[list[int]]:
        llm.reset_prefix_cache()
        return [list(output.outputs[0].token_ids) for output in llm.generate(PROMPTS, params, use_tqdm=False)]

    alone = tokens()
    widgets = linked(llm, TokenBudget, Requests, CacheMap, Dashboard, PrefixTree)
    assert tokens() == alone
    for widget in widgets:
        widget.close()


def test_tables_grow_with_forced_tokens_and_logprobs_too(llm: LLM) -> None:
    forced = StructuredOutputsParams(regex="[ab]zqzqzq[ab]{2}qqqqq")
    params = [
        SamplingParams(max_tokens=20, structured_outputs=forced),
        SamplingParams(max_tokens=20, logprobs=2),
    ] * 3
    with llm.trace.record() as trace:
        llm.generate(PROMPTS, params, use_tqdm=False)
    assert trace.columns.steps["forced"].sum() > 0
    grown = GrowingTables((*NAMES, "likelihoods"), trace.decode)
    for event in trace.recording().events:
        grown.take([event])
    for name in NAMES:
        equal(grown[name], getattr(trace.columns, name))


@pytest.mark.parametrize("kind", [TokenBudget, Requests, CacheMap, Dashboard, Stepper, PrefixTree])
def test_a_closed_engine_says_so_in_the_widgets_place(kind: type[TokenBudget]) -> None:
    with LLM("zoo/wren-1m", max_num_seqs=2) as empty:
        pass
    assert "the engine is closed: make a new one" in kind(empty)._place.value
    with LLM("zoo/wren-1m", max_num_seqs=2) as used:
        used.generate("the owl", SamplingParams(max_tokens=2), use_tqdm=False)
    widget = kind(used)
    assert "<svg" in widget._place.value
    assert "The engine is closed" in widget._place.value
