"""A trace that begins in mid-run says so, and says nothing that it cannot know."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.trace.house import House, Thing, build
from tests.trace.test_exports import one, parse
from workbench.engine.events import StepCommitted
from workbench.trace import Trace


def long_and_short(house: House) -> House:
    """One request of many tokens, and one that comes and ends while it runs."""
    house.add([1, 2, 3], max_tokens=30, ignore_eos=True)
    for _ in range(20):
        house.engine.advance()
    house.add([4, 5], max_tokens=4, ignore_eos=True)
    return house.run()


@pytest.fixture(params=[0, 1])
def turned(request: pytest.FixtureRequest) -> tuple[Trace, Trace]:
    """A ring that has turned over, and everything."""
    house = build(max_steps=16, depth=request.param)
    whole = Trace(None, decode=house.trace._decode)
    house.emitter.add(whole.observer)
    long_and_short(house)
    assert house.trace.runs.dropped_steps[0] > 0
    return house.trace, whole


def test_what_a_ring_says_of_a_request_is_true_or_missing(turned: tuple[Trace, Trace]) -> None:
    ring, whole = turned
    a, b = ring.requests, whole.requests
    assert a.request_id.tolist() == b.request_id.tolist() == ["0", "1"]
    assert a.output_tokens.tolist() == b.output_tokens.tolist() == [30, 4]
    for column in ("queue_s", "ttft_s", "tpot_s", "e2e_s"):
        known = a[column].notna()
        assert known.tolist()[1], column
        assert a[column][known].tolist() == pytest.approx(b[column][known].tolist()), column
    assert a.loc[0, ["first_token_s", "ttft_s", "tpot_s", "output"]].isna().all()
    assert a.output[1] == b.output[1]
    assert ring.runs.mid_run.tolist() == [True]
    assert whole.runs.mid_run.tolist() == [False]
    assert ring.runs.output_tokens[0] == len(ring.tokens) < whole.runs.output_tokens[0] == len(whole.tokens)


def test_prometheus_leaves_out_what_is_not_known(turned: tuple[Trace, Trace]) -> None:
    ring, whole = (parse(trace.to_prometheus()) for trace in turned)
    for name in ("time_to_first_token", "request_time_per_output_token", "request_prefill_time"):
        assert one(whole, f"vllm:{name}_seconds", "_count") == 2
        assert one(ring, f"vllm:{name}_seconds", "_count") == 1
    assert one(ring, "vllm:time_to_first_token_seconds", "_sum") == pytest.approx(
        turned[1].requests.ttft_s[1]
    )
    assert one(ring, "vllm:request_generation_tokens", "_sum") == 34
    assert one(ring, "vllm:generation_tokens_total") == len(turned[0].tokens)


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_a_scope_that_begins_in_a_request_says_so(steps: int) -> None:
    house = build()
    house.add([1, 2, 3], max_tokens=9, ignore_eos=True)
    for _ in range(steps):
        house.engine.step()
    with house.trace.record() as t:
        still = t.requests
        house.run()
    assert t.runs.mid_run[0] == (steps < 9)
    if steps == 9:
        assert len(t.requests) == 0
        return
    assert still.loc[0, ["ttft_s", "output"]].isna().all()
    assert t.requests.output_tokens.tolist() == [9]
    assert t.requests.loc[0, ["ttft_s", "tpot_s", "output"]].isna().all()


def test_a_scope_that_begins_before_the_first_token_holds_the_whole_text() -> None:
    house = build(budget=4)
    house.add([1] * 10, max_tokens=3, ignore_eos=True)
    house.engine.step()  # a chunk of the prompt
    with house.trace.record() as t:
        house.run()
    assert t.runs.mid_run.tolist() == [True]
    pd.testing.assert_series_equal(t.requests.output, house.trace.requests.output)
    assert t.requests.ttft_s.tolist() == house.trace.requests.ttft_s.tolist()
    assert t.requests.output.notna().all()


def test_a_scope_of_an_idle_engine_begins_anew() -> None:
    house = build()
    house.add([1, 2, 3])
    house.run()
    with house.trace.record() as t:
        house.add([1, 2, 3, 4])
        house.run()
    assert t.runs.mid_run.tolist() == [False]
    assert t.requests.ttft_s.notna().all()


def test_an_observer_that_comes_late_is_in_mid_run() -> None:
    house, late = build(depth=1), Trace(None)
    house.add([1, 2, 3], max_tokens=9, ignore_eos=True)
    house.engine.advance()
    house.emitter.add(late.observer)
    house.run()
    assert late.runs.mid_run.tolist() == [True]
    assert late.requests.output_tokens.tolist() == [9]
    assert late.requests.ttft_s.isna().all()
    commits = [e for e in late.recording().events if isinstance(e, StepCommitted)]
    assert len(commits) > len(late.tokens)  # the first one's plan was not heard


def test_a_trace_of_nothing_begins_nowhere() -> None:
    assert Trace().runs.mid_run.tolist() == [False]


def test_a_ring_that_turned_still_knows_how_long_a_grammar_took() -> None:
    house, need = build(max_steps=4), Thing()
    house.add([4, 5], max_tokens=6, ignore_eos=True)
    house.add([1, 2, 3], max_tokens=30, ignore_eos=True, need=need)
    house.engine.advance()
    need.ready = True
    house.engine.advance()
    before = house.trace.requests.grammar_s[1]
    house.run()
    assert house.trace.runs.dropped_steps[0] > 10
    assert before > 0
    assert house.trace.requests.grammar_s.tolist() == pytest.approx([before])
