"""A short soak passes, and one of an engine that lies, loses blocks or hangs does not."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from workbench import LLM, SamplingParams
from workbench.soak import rounds
from workbench.soak.cases import ADAPTERS, CONSTRAINTS, INVALID, Case, draw_case
from workbench.soak.expected import Answer, Loras, difference
from workbench.soak.rounds import Report, soak
from workbench.soak.settings import draw_settings
from workbench.soak.slope import Slope, slope, student

MODEL = "zoo/wren-1m"


def test_engines_under_random_use_neither_crash_nor_lie_nor_lose_anything() -> None:
    report = soak(0.2, MODEL, threads=2, seed=3, round_s=4, cases=12)
    assert report.failures == []
    assert report.total["requests"] > 0
    assert report.total["tokens"] > 0


def test_a_wrong_token_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = rounds.expect

    def wrong(model: str, cases: Sequence[Case], device: str, lora: Loras) -> list[list[Answer]]:
        """As if the engines changed the first token of every answer."""
        return [
            [one._replace(token_ids=(one.token_ids[0] + 1, *one.token_ids[1:])) for one in answers]
            for answers in real(model, cases, device, lora)
        ]

    monkeypatch.setattr(rounds, "expect", wrong)
    report = soak(0.02, MODEL, threads=1, round_s=1, cases=4)
    assert not report.passed
    assert "is due" in report.failures[0]


def test_requests_and_blocks_left_in_an_engine_are_found() -> None:
    with LLM(MODEL, device="cpu", max_model_len=64) as llm:
        assert rounds.left_behind(llm) == []
        llm.add_request("left alone", SamplingParams(max_tokens=20))
        llm.step()
        found = rounds.left_behind(llm)
    assert any("blocks are held" in what for what in found)
    assert any("requests are left" in what for what in found)


def test_callers_that_do_not_end_are_named_by_their_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "PATIENCE_S", 0.05)
    end = threading.Event()

    def waits_for_ever(until: float) -> None:
        end.wait()

    with pytest.raises(rounds.Stuck, match="waits_for_ever"):
        rounds._run([waits_for_ever, lambda until: None], time.monotonic())
    end.set()


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(MODEL, device="cpu", max_model_len=256) as llm:
        yield llm


@pytest.mark.parametrize("index", range(len(INVALID)))
def test_what_is_to_be_refused_is_refused_by_an_idle_engine(index: int, llm: LLM) -> None:
    prompt, params = INVALID[index]
    with pytest.raises((ValueError, TypeError)):
        llm.generate(prompt, params(), use_tqdm=False)
    assert rounds.left_behind(llm) == []


def test_a_soak_sees_adapters_grammars_and_both_drafters() -> None:
    rng = random.Random(0)
    cases, settings = [draw_case(rng) for _ in range(40)], [draw_settings(rng) for _ in range(40)]
    assert {case.adapter for case in cases} == set(range(ADAPTERS + 1))
    assert {case.constraint for case in cases} == {None, *range(len(CONSTRAINTS))}
    assert {"enable_lora" in one for one in settings} == {True, False}
    methods = {one.get("speculative_config", {}).get("method") for one in settings}
    assert methods == {None, "ngram", "suffix"}


def test_adapters_of_a_soak_change_what_is_said(tmp_path: Path) -> None:
    with LLM(MODEL, device="cpu", max_model_len=64, enable_lora=True) as llm:
        lora = list(rounds.adapters(MODEL, tmp_path).values())
        said = llm.generate(["Once upon a time"] * len(lora), lora_request=lora, use_tqdm=False)
    assert len({tuple(output.outputs[0].token_ids) for output in said}) == len(lora)


def test_a_case_is_the_same_for_the_same_seed() -> None:
    first, second = ([draw_case(random.Random(5)) for _ in range(3)] for _ in range(2))
    assert first == second


def test_an_answer_cut_short_is_right_only_where_something_may_have_cut_it() -> None:
    case, due = draw_case(random.Random(0)), [Answer((1, 2, 3), "abc", "length")]
    cut = [Answer((1, 2), "ab", "error")]
    assert difference(case, cut, due, early=True) is None
    assert difference(case, cut, due, early=False) is not None
    assert difference(case, [Answer((1, 9), "ax", "error")], due, early=True) is not None
    assert difference(case, [], due, early=True) is not None


def test_a_slope_is_that_of_the_line_and_its_interval_holds_the_truth() -> None:
    exact = slope([3.0 + 0.5 * x for x in range(10)])
    assert exact is not None
    assert exact.value == pytest.approx(0.5)
    assert exact.low == pytest.approx(0.5) == exact.high
    rng = random.Random(1)
    held = 0
    for _ in range(400):
        found = slope([0.3 * x + rng.gauss(0, 2) for x in range(8)])
        assert found is not None
        held += found.low <= 0.3 <= found.high
    assert 365 <= held <= 394  # 380 ± 3.2 standard deviations
    assert slope([1.0, 2.0, 3.0]) is None


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(2, 4.3027), (3, 3.1824), (5, 2.5706), (10, 2.2281), (30, 2.0423), (120, 1.9799)],
)
def test_students_quantiles_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert student(freedom) == pytest.approx(quantile, rel=0.07 if freedom == 2 else 0.012)


def test_memory_leaks_when_it_grows_beyond_noise_by_more_than_half_a_mib_a_round() -> None:
    assert Report([], [], Slope(2.0, 0.8, 3.2)).leaks
    assert not Report([], [], Slope(2.0, -0.1, 4.1)).leaks
    assert not Report([], [], Slope(0.2, 0.1, 0.3)).leaks
    assert not Report([], [], None).leaks
    assert not Report([], ["something"], None).passed


def test_the_command_imports_torch_when_it_has_said_how_threads_wait() -> None:
    program = "import sys, workbench.soak.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("bad", [{"minutes": 0}, {"minutes": 1, "threads": 0}, {"minutes": 1, "cases": -1}])
def test_nothing_to_do_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="use a positive number"):
        soak(**{"model": MODEL} | bad)
