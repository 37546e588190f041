"""Tables of short hand-written runs, every number worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.engine.events import (
    EngineStarted,
    Event,
    RequestAdmitted,
    RequestArrived,
    RequestFinished,
    RequestPreempted,
    StepCommitted,
    StepFailed,
    StepPlanned,
)
from workbench.engine.plan import Addition, StepPlan
from workbench.engine.result import LogprobColumns, StepResult
from workbench.params import SamplingParams
from workbench.trace import Trace


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def arrived(at: float, name: str, prompt: int, max_tokens: int = 4) -> RequestArrived:
    return RequestArrived(at, name, np.arange(prompt, dtype=np.int32), max_tokens, 0, b"")


def admitted(
    at: float, step: int, name: str, tokens: int, cached: int = 0, reached: int | None = None
) -> RequestAdmitted:
    return RequestAdmitted(at, step, name, 0, tokens, tokens, cached, reached or 0, reached is not None)


def planned(
    at: float, index: int, *work: tuple[str, int, int, bool], logprobs: tuple[str, ...] = ()
) -> StepPlanned:
    """Each piece of work is (request, start, count, samples); the row is the request's letter."""
    names, starts, counts, samples = zip(*work, strict=True)
    rows = ints(*(ord(name[0]) for name in names))
    added = tuple(
        Addition(0, name, ints(0), 1, (), SamplingParams(logprobs=1 if name in logprobs else None), 0, ())
        for name, start, _, _ in work
        if start == 0
    )
    plan = StepPlan(index, 8, rows, ints(*starts), ints(*counts), np.array(samples), ints(), added, ())
    return StepPlanned(at, plan, names, len(work), 1, 6, 4, 2, recomputed=0, plan_s=0.25)


def committed(
    at: float, index: int, taken: dict[str, int], lines: int | None = None, overshoot: int = 0
) -> StepCommitted:
    """`taken` maps a request to its token."""
    tokens = ints(*taken.values())
    size = len(tokens) if lines is None else lines
    logprobs = LogprobColumns(
        np.linspace(-1, -2, size, dtype=np.float32), ints(*range(1, size + 1)), np.zeros((size, 1), np.int32),
        np.zeros((size, 1), np.float32), np.linspace(0, 1, size, dtype=np.float32),
    )  # fmt: skip
    result = StepResult(index, ints(), tokens, logprobs, at - 1.5, at - 0.5, 0.75)
    return StepCommitted(at, result, tuple(taken), ints(*range(len(taken))), overshoot, commit_s=0.25)


def finished(
    at: float, name: str, outputs: int, reason: str = "length", preemptions: int = 0
) -> RequestFinished:
    return RequestFinished(at, name, reason, None, outputs, preemptions)


def trace_of(*events: Event) -> Trace:
    trace = Trace(None, decode=lambda ids: "".join(chr(97 + token_id) for token_id in ids))
    for event in events:
        trace.observer(event)
    return trace


@pytest.fixture
def two() -> Trace:
    """a: 10 prompt tokens in chunks of 8 and 2. b: 6 tokens, 4 of them found in the cache."""
    return trace_of(
        EngineStarted(100.0, {"model": "m", "device": "cpu", "eos": (1, 2)}),
        arrived(101.0, "a", 10),
        arrived(102.0, "b", 6),
        admitted(103.0, 0, "a", 10),
        planned(103.5, 0, ("a", 0, 8, False)),
        committed(106.0, 0, {}),
        admitted(107.0, 1, "b", 6, cached=4),
        planned(107.5, 1, ("a", 8, 2, True), ("b", 4, 2, True)),
        committed(110.0, 1, {"a": 3, "b": 4}),
        planned(111.5, 2, ("a", 10, 1, True), ("b", 6, 1, True)),
        committed(114.0, 2, {"a": 5, "b": 6}),
        finished(114.5, "a", 2),
        finished(114.5, "b", 2),
    )


def test_steps(two: Trace) -> None:
    s = two.columns.steps
    assert s["step"].tolist() == [0, 1, 2]
    assert s["scheduled"].tolist() == [8, 4, 2]
    assert s["prefill"].tolist() == [8, 4, 0]
    assert s["decode"].tolist() == [0, 0, 2]
    assert s["cached"].tolist() == [0, 4, 0]
    assert s["sampled"].tolist() == [0, 2, 2]
    assert s["admitted"].tolist() == [1, 1, 0]
    assert s["planned_s"].tolist() == [3.5, 7.5, 11.5]
    assert s["launched_s"].tolist() == [4.5, 8.5, 12.5]
    assert s["collected_s"].tolist() == [5.5, 9.5, 13.5]
    assert s["gap_s"].tolist()[1:] == [3.0, 3.0]
    assert s["host_s"].tolist() == [0.5, 0.5, 0.5]
    assert s["device_s"].tolist() == [0.75, 0.75, 0.75]
    assert (s["blocks_free"][0], s["blocks_held"][0], s["blocks_cached"][0], s["waiting"][0]) == (6, 4, 2, 1)


def test_requests(two: Trace) -> None:
    r = two.columns.requests
    assert r["prompt_tokens"].tolist() == [10, 6]
    assert r["cached_tokens"].tolist() == [0, 4]
    assert r["computed_tokens"].tolist() == [11, 3]  # prompt - cached + outputs - 1
    assert r["queue_s"].tolist() == [2.0, 5.0]
    # committing began a quarter second before it was done, at 109.75 and 113.75
    assert r["ttft_s"].tolist() == [8.75, 7.75]
    assert r["tpot_s"].tolist() == [4.0, 4.0]
    assert r["e2e_s"].tolist() == [13.5, 12.5]
    assert r["output"].tolist() == ["df", "eg"]
    assert r["prompt"].tolist() == ["abcdefghij", "abcdef"]


def test_tokens(two: Trace) -> None:
    t = two.columns.tokens
    assert t["request_id"].tolist() == ["a", "b", "a", "b"]
    assert t["index"].tolist() == [0, 0, 1, 1]
    assert t["position"].tolist() == [10, 6, 11, 7]
    assert t["text"].tolist() == ["d", "e", "f", "g"]
    assert t["at_s"].tolist() == [9.75, 9.75, 13.75, 13.75]


def test_runs_and_events(two: Trace) -> None:
    run = {name: column[0] for name, column in two.columns.runs.items()}
    assert (run["model"], run["device"]) == ("m", "cpu")
    assert run["config"] == '{"model": "m", "device": "cpu", "eos": [1, 2]}'
    assert (run["scheduled_tokens"], run["cached_tokens"], run["output_tokens"]) == (14, 4, 4)
    assert run["wall_s"] == 114.5 - 103.25  # from the first plan's beginning
    events = two.columns.events
    kinds = events["kind"].tolist()
    assert kinds[:5] == [
        "engine_started",
        "request_arrived",
        "request_arrived",
        "request_admitted",
        "step_planned",
    ]
    assert events["step"].tolist()[3:6] == [0, 0, 0]
    assert events["request_id"].tolist()[1] == "a"
    assert '"prompt_token_ids": 10' in events["detail"][1]


def test_what_is_computed_again_is_prefill_and_recomputed() -> None:
    s = trace_of(
        arrived(1, "a", 4),
        admitted(2, 0, "a", 4),
        planned(3, 0, ("a", 0, 4, True)),
        committed(4, 0, {"a": 1}),
        planned(5, 1, ("a", 4, 1, True)),
        committed(6, 1, {"a": 1}),
        RequestPreempted(7, 2, "a", 5, 0),  # tokens 0 to 4 had been computed; token 5 had not
        admitted(8, 2, "a", 6, cached=2, reached=5),
        planned(9, 2, ("a", 2, 4, True)),
        committed(10, 2, {"a": 1}),
        finished(11, "a", 3, preemptions=1),
    ).columns.steps
    assert s["recomputed"].tolist() == [0, 0, 3]
    assert s["prefill"].tolist() == [4, 0, 3]
    assert s["decode"].tolist() == [0, 1, 1]
    assert s["preempted"].tolist() == [0, 0, 1]
    assert s["cached"].tolist() == [0, 0, 2]
    assert s["scheduled"].sum() == 4 + (3 - 1) + s["recomputed"].sum()


def test_what_a_resumption_finds_beyond_its_own_work_is_taken_off() -> None:
    tables = trace_of(
        arrived(1, "a", 8),
        admitted(2, 0, "a", 8),
        planned(3, 0, ("a", 0, 2, False)),
        committed(4, 0, {}),
        RequestPreempted(5, 1, "a", 2, 0),
        admitted(6, 1, "a", 8, cached=6, reached=2),  # tokens 2 to 5 came from somebody else
        planned(7, 1, ("a", 6, 2, True)),
        committed(8, 1, {"a": 1}),
        finished(9, "a", 1, preemptions=1),
    ).columns
    assert tables.steps["recomputed"].tolist() == [0, -4]
    assert tables.steps["scheduled"].sum() == 4 == 8 - 0 + (1 - 1) + tables.steps["recomputed"].sum()
    assert tables.requests["cached_tokens"].tolist() == [0]


def test_a_step_planned_for_a_request_that_ended_meanwhile_is_overshoot() -> None:
    tables = trace_of(
        arrived(1, "a", 2),
        arrived(1, "b", 9),
        admitted(2, 0, "a", 2),
        admitted(2, 0, "b", 9),
        planned(3, 0, ("a", 0, 2, True), ("b", 0, 4, False)),
        planned(4, 1, ("a", 2, 1, True), ("b", 4, 4, False)),
        committed(5, 0, {"a": 0}),
        finished(6, "a", 1, "stop"),
        RequestPreempted(6.5, 2, "b", 4, 4),  # its chunk in flight goes too, though it would not have sampled
        committed(7, 1, {}, lines=1, overshoot=5),
    ).columns
    assert tables.steps["overshoot"].tolist() == [0, 5]
    assert tables.step_requests["dropped"].tolist() == [False, False, True, True]
    assert tables.requests["overshoot_tokens"].tolist() == [1, 4]
    assert tables.requests["computed_tokens"].tolist() == [3, 8]


def test_a_failed_step_takes_those_behind_it_along() -> None:
    s = trace_of(
        arrived(1, "a", 2),
        admitted(2, 0, "a", 2),
        planned(3, 0, ("a", 0, 2, True)),
        planned(4, 1, ("a", 2, 1, True)),
        StepFailed(5, 0, ("a",), "RuntimeError: injected"),
        finished(6, "a", 0, "error"),
    ).columns.steps
    assert s["status"].tolist() == ["failed", "failed"]
    assert s["overshoot"].tolist() == [2, 1]
    assert np.isnan(s["collected_s"]).all()


def test_logprobs_are_shown_where_they_were_asked_for() -> None:
    t = trace_of(
        arrived(1, "a", 1),
        arrived(1, "b", 1),
        planned(2, 0, ("a", 0, 1, True), ("b", 0, 1, True), logprobs=("b",)),
        committed(3, 0, {"a": 5, "b": 6}),
    ).columns.tokens
    assert np.isnan(t["logprob"][0])
    assert np.isnan(t["rank"][0])
    assert (t["logprob"][1], t["rank"][1]) == (-2.0, 2.0)


def test_an_id_used_again_is_another_request() -> None:
    r = trace_of(
        arrived(1, "a", 3),
        finished(2, "a", 0, "abort"),
        arrived(3, "a", 5),
    ).columns.requests
    assert r["prompt_tokens"].tolist() == [3, 5]
    assert r["finish_reason"].tolist() == ["abort", None]


def test_a_trace_of_nothing_has_empty_tables_with_all_their_columns() -> None:
    tables = Trace(None).columns
    assert [len(tables.steps["step"]), len(tables.requests["request_id"]), len(tables.tokens["text"])] == [
        0,
        0,
        0,
    ]
    assert tables.runs["steps"].tolist() == [0]
    assert tables.steps["scheduled"].dtype == np.int64


def test_without_a_tokenizer_texts_are_missing() -> None:
    trace = Trace(None)
    for event in (arrived(1, "a", 1), planned(2, 0, ("a", 0, 1, True)), committed(3, 0, {"a": 5})):
        trace.observer(event)
    assert trace.columns.tokens["text"].tolist() == [None]
    assert trace.columns.requests["prompt"].tolist() == [None]
