"""Logits processors that fail end the requests they were to serve, and never the engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from torch import Tensor

from tests.llm.conftest import Models, Open, check_idle
from tests.llm.processors import (
    COUNT,
    Banning,
    Failing,
    InvariantIdentity,
    requests,
)
from workbench import SamplingParams
from workbench.logits_processors import AdapterLogitsProcessor
from workbench.sim.replay import replay
from workbench.trace import Trace


def mixed(how: str) -> tuple[list[list[int]], list[SamplingParams]]:
    prompts, _ = requests()
    args = [{"fail": how} if i == 2 else None for i in range(len(prompts))]
    common: dict[str, Any] = {"temperature": 0, "max_tokens": COUNT, "ignore_eos": True}
    return prompts, [SamplingParams(**common, extra_args=a) for a in args]


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("how", ["nan", "empty"])
def test_a_spoilt_row_ends_its_own_request_and_no_other(
    models: Models, open_llm: Open, how: str, overlapped: bool
) -> None:
    llm = open_llm(logits_processors=[Failing], async_scheduling=overlapped)
    prompts, params = mixed(how)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    check_idle(llm)
    for i, output in enumerate(outputs):
        child, expected = output.outputs[0], models.greedy(prompts[i], COUNT)
        if i == 2:
            assert child.finish_reason == "error"
            assert child.stop_reason.startswith("logits processor Failing: it left NaN")
            assert list(child.token_ids) == expected[:2], "what came before stays, and nothing is added"
        else:
            assert child.finish_reason == "length"
            assert list(child.token_ids)[: len(expected)] == expected


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("raise", "KeyError: 'injected'"),
        ("update", "update_state: KeyError: 'injected'"),
        ("shape", r"apply returned \[\d, 319\] for logits \[\d, 320\]"),
        ("nothing", "apply returned NoneType"),
    ],
)
def test_a_failure_of_nobody_in_particular_ends_the_steps_requests_and_not_the_engine(
    models: Models, open_llm: Open, how: str, says: str, overlapped: bool
) -> None:
    llm = open_llm(logits_processors=[Failing], async_scheduling=overlapped, max_num_seqs=4)
    prompts, params = mixed(how)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    check_idle(llm)
    ends = [output.outputs[0].finish_reason for output in outputs]
    assert ends == ["error"] * 4 + ["length"] * 2, "those that were in the step, and those that came later"
    for output in outputs[:4]:
        assert output.outputs[0].stop_reason.startswith("logits processor Failing: ")
    assert re.search(says, outputs[2].outputs[0].stop_reason)
    (again,) = llm.generate(prompts[:1], params[0], use_tqdm=False)
    expected = models.greedy(prompts[0], COUNT)
    assert list(again.outputs[0].token_ids)[: len(expected)] == expected


@pytest.mark.parametrize(
    ("process", "says"),
    [
        (lambda output_ids, logits: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda output_ids, logits: logits[1:], r"it returned a Tensor \[319\] instead of logits \[320\]"),
        (lambda output_ids, logits: None, r"it returned a NoneType instead of logits \[320\]"),
        (lambda output_ids, logits: logits * float("nan"), "it left NaN"),
    ],
    ids=["raises", "shape", "nothing", "nan"],
)
def test_a_callable_that_fails_ends_its_own_request(
    models: Models, open_llm: Open, process: Any, says: str
) -> None:
    llm = open_llm(logits_processors=[AdapterLogitsProcessor])
    prompts, params = mixed("nan")
    params[2].extra_args = {"logits_processor": process}
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [output.outputs[0].finish_reason for output in outputs] == [
        "error" if i == 2 else "length" for i in range(len(prompts))
    ]
    assert re.search(f"^logits processor AdapterLogitsProcessor: {says}", outputs[2].outputs[0].stop_reason)
    for prompt, output in zip(prompts, outputs, strict=True):
        expected = models.greedy(prompt, COUNT)
        found = list(output.outputs[0].token_ids)
        assert found[: len(expected)] == expected[: len(found)]


def test_a_callable_that_cannot_be_made_ends_its_own_request(open_llm: Open) -> None:
    llm = open_llm(logits_processors=[Banning])
    prompts, params = mixed("nan")
    params[2].extra_args = {"ban": "nothing"}
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [output.outputs[0].finish_reason for output in outputs] == ["length"] * 2 + ["error"] + [
        "length"
    ] * 3
    assert outputs[2].outputs[0].stop_reason == "logits processor Banning: KeyError: 'injected'"


def test_an_invariant_processor_that_fails_leaves_greedy_requests_alone(open_llm: Open) -> None:
    class Late(InvariantIdentity):
        def apply(self, logits: Tensor) -> Tensor:
            return logits * float("nan")

    llm = open_llm(logits_processors=[Late])
    prompts, params = requests()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [output.outputs[0].finish_reason for output in outputs] == [
        "length" if own.is_greedy else "error" for own in params
    ]


def test_a_failure_is_told_when_stepping_and_streaming(open_llm: Open) -> None:
    llm = open_llm(logits_processors=[Failing])
    prompts, params = mixed("nan")
    llm.add_request(prompts[2], params[2], request_id="mine")
    steps = [llm.step() for _ in range(3)]
    assert [step.finished for step in steps] == [[], [], ["mine"]]
    assert steps[-1].outputs[0].outputs[0].finish_reason == "error"
    assert not llm.has_unfinished_requests()
    told = list(llm.stream(prompts[2], params[2]))
    assert [len(output.outputs[0].token_ids) for output in told] == [1, 1, 0]
    assert told[-1].outputs[0].finish_reason == "error"


def test_the_trace_counts_a_dropped_token_as_overshoot(open_llm: Open) -> None:
    llm = open_llm(logits_processors=[Failing])
    prompts, params = mixed("nan")
    with llm.trace.record() as trace:
        llm.generate(prompts, params, use_tqdm=False)
    assert trace.requests["finish_reason"].tolist().count("error") == 1
    assert trace.steps["overshoot"].sum() == 1


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("how", ["nan", "raise"])
def test_a_recording_of_failures_is_read_back_and_plays_again(
    open_llm: Open, tmp_path: Path, how: str, overlapped: bool
) -> None:
    llm = open_llm(logits_processors=[Failing], async_scheduling=overlapped, max_num_seqs=4)
    with llm.trace.record(tmp_path / "run") as trace:
        llm.generate(*mixed(how), use_tqdm=False)
    again = Trace.load(tmp_path / "run")
    told = again.requests["stop_reason"].dropna().str.contains("logits processor Failing")
    assert told.tolist() == [True] * (4 if how == "raise" else 1)
    for other in (again, replay(trace)):
        assert not Trace.diff(trace, other)
        for name in ("requests", "steps", "tokens"):
            pd.testing.assert_frame_equal(
                getattr(trace, name)[DECIDED[name]], getattr(other, name)[DECIDED[name]]
            )


DECIDED = {
    "requests": ["request_id", "output_tokens", "overshoot_tokens", "finish_reason", "stop_reason"],
    "steps": ["step", "scheduled", "overshoot", "running", "waiting", "blocks_held"],
    "tokens": ["request_id", "position", "token_id"],
}
