"""Traffic through an engine: sent as asked, told as it was, kept, compared and swept."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from workbench import LLM
from workbench.bench import (
    BenchmarkResult,
    Fixed,
    Traffic,
    Uniform,
    at_once,
    bursts,
    compare,
    conversations,
    drawn,
    overhead,
    poisson,
    run,
    sweep,
    sweeping,
)
from workbench.bench.traffic import shareable_tokens

MODEL = "zoo/wren-1m"
VOCAB = 1000


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(MODEL, device="cpu", max_model_len=256, max_num_batched_tokens=64, max_num_seqs=4) as llm:
        yield llm


@pytest.fixture(scope="module")
def offline(llm: LLM) -> BenchmarkResult:
    return run(llm, some(at_once(6)), use_tqdm=False)


def some(at_s: Any, **options: Any) -> Traffic:
    return drawn("some", at_s, Uniform(5, 40), Uniform(2, 8), VOCAB, **options)


def test_every_request_is_sent_in_order_and_generates_what_it_asks_for(offline: BenchmarkResult) -> None:
    asked = offline.traffic
    assert offline.requests["prompt_tokens"].tolist() == [len(prompt) for prompt in asked.prompts]
    assert offline.requests["output_tokens"].tolist() == list(asked.outs)


def test_the_figures_are_sums_over_requests_and_steps(offline: BenchmarkResult) -> None:
    figures, requests, steps = offline.figures, offline.requests, offline.steps
    assert figures["out_tokens_per_s"] * figures["seconds"] == pytest.approx(sum(offline.traffic.outs))
    assert figures["requests_per_s"] * figures["seconds"] == pytest.approx(6)
    assert figures["steps"] == len(steps)
    computed = requests["prompt_tokens"] - requests["cached_tokens"] + requests["output_tokens"] - 1
    assert steps["scheduled"].sum() == computed.sum()
    assert len(offline.itl_s) == sum(out - 1 for out in offline.traffic.outs)


def test_the_summary_is_that_of_the_tables(offline: BenchmarkResult) -> None:
    summary = offline.summary
    for metric in ("queue_s", "ttft_s", "tpot_s", "e2e_s"):
        assert summary.loc[metric, "mean"] == pytest.approx(offline.requests[metric].mean())
        assert summary.loc[metric, "p90"] == pytest.approx(offline.requests[metric].quantile(0.9))
    assert summary.loc["itl_s", "mean"] == pytest.approx(float(np.mean(offline.itl_s)))
    weights = offline.requests["output_tokens"] - 1
    assert float(np.sum(offline.itl_s)) == pytest.approx((offline.requests["tpot_s"] * weights).sum())


def test_goodput_counts_the_requests_that_kept_to_all_limits(offline: BenchmarkResult) -> None:
    median = float(offline.requests["e2e_s"].median())
    assert offline.goodput() == pytest.approx(offline.figures["requests_per_s"])
    assert offline.goodput(e2e_s=median) == pytest.approx(3 / offline.seconds)
    assert offline.goodput(e2e_s=1e9, ttft_s=0.0) == 0
    with pytest.raises(ValueError, match="no limit on 'latency': use queue_s, ttft_s"):
        offline.goodput(latency=1)


@pytest.mark.alone
def test_requests_come_at_their_times(llm: LLM) -> None:
    traffic = some(bursts(4, 2, 0.5))
    result = run(llm, traffic, use_tqdm=False)
    came = (result.requests["arrived_s"] - result.requests["arrived_s"].iloc[0]).to_numpy()
    assert came[1] < 0.45  # with the first
    assert came[2:].min() >= 0.45  # not before their time
    assert result.requests["output_tokens"].tolist() == list(traffic.outs)


@pytest.mark.alone
def test_ctrl_c_ends_what_was_sent_and_sends_no_more(llm: LLM) -> None:
    """As a terminal sends it: to the main thread, which waits for the sender."""
    traffic = drawn("slow", bursts(6, 1, 0.4), Fixed(10), Fixed(200), VOCAB)
    timer = threading.Timer(1.0, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            run(llm, traffic, use_tqdm=False)
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
    assert run(llm, some(at_once(2)), use_tqdm=False).figures["requests"] == 2
    assert not llm.has_unfinished_requests()


def test_the_hit_rate_is_what_the_traffic_allows(llm: LLM) -> None:
    """Requests one after the other, so that each finds all that came before."""
    llm.reset_prefix_cache()
    traffic = conversations(
        2, 3, system=20, question=Fixed(9), answer=Fixed(4), vocab_size=VOCAB, think_s=0, rate=1e6
    )
    found = 0
    for index in range(len(traffic.prompts)):
        one = Traffic("one", (0.0,), traffic.prompts[index : index + 1], traffic.outs[index : index + 1])
        found += int(run(llm, one, use_tqdm=False).requests["cached_tokens"].sum())
    assert found == shareable_tokens(traffic.prompts, llm.config.block_size) > 0


def test_a_saved_run_is_the_same_and_can_be_repeated(
    llm: LLM, offline: BenchmarkResult, tmp_path: Path
) -> None:
    read = BenchmarkResult.load(offline.save(tmp_path / "run"))
    assert read.traffic == offline.traffic
    assert read.about == offline.about
    assert {"settings", "model", "commit", "torch", "device", "date"} <= set(read.about)
    pd.testing.assert_frame_equal(read.summary, offline.summary)
    assert read.figures == pytest.approx(offline.figures)
    again = run(llm, read.traffic, use_tqdm=False)
    assert again.requests["output_tokens"].tolist() == offline.requests["output_tokens"].tolist()


def test_a_run_is_not_overwritten_and_one_of_another_version_not_read(
    offline: BenchmarkResult, tmp_path: Path
) -> None:
    folder = offline.save(tmp_path / "run")
    with pytest.raises(FileExistsError, match="is there already"):
        offline.save(folder)
    about = json.loads((folder / "run.json").read_text()) | {"version": 99}
    (folder / "run.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="version 99, this reads 1"):
        BenchmarkResult.load(folder)
    with pytest.raises(OSError, match="nowhere"):
        BenchmarkResult.load(tmp_path / "nowhere")


def shifted(result: BenchmarkResult, by: list[float]) -> BenchmarkResult:
    """The same run, had each request taken so much longer."""
    requests = result.requests.copy()
    requests["ttft_s"] += by
    return BenchmarkResult(result.traffic, result.about, requests, result.steps, result.itl_s)


def test_paired_requests_differ_by_what_lies_between_them(offline: BenchmarkResult) -> None:
    table = compare(offline, shifted(offline, [0.5, 0.6, 0.4, 0.5, 0.5, 0.5])).table.set_index("metric")
    line = table.loc["ttft_s"]
    assert line["difference"] == pytest.approx(0.5)
    assert 0.4 <= line["low"] <= 0.5 <= line["high"] <= 0.6
    assert line["differs"]
    assert not table.loc["e2e_s", "differs"]
    assert table.loc["e2e_s", "difference"] == 0


def test_a_difference_that_goes_either_way_is_none(offline: BenchmarkResult) -> None:
    line = compare(offline, shifted(offline, [1, -1, 1, -1, 1, -1])).table.set_index("metric").loc["ttft_s"]
    assert line["low"] < 0 < line["high"]
    assert not line["differs"]


def test_runs_of_different_traffic_are_not_paired(llm: LLM, offline: BenchmarkResult) -> None:
    other = run(llm, some(at_once(6), seed=1), use_tqdm=False)
    with pytest.raises(ValueError, match="different traffic"):
        compare(offline, other)
    with pytest.raises(ValueError, match="at least two"):
        compare(offline)
    with pytest.raises(ValueError, match="1 names for 2 results"):
        compare(offline, offline, names=["one"])


def test_a_comparison_has_a_picture(offline: BenchmarkResult) -> None:
    axes = compare(offline, offline, names=["a", "b"]).plot().axes
    assert [one.get_xlabel() for one in axes] == ["TTFT (s)", "TPOT (s)"]
    assert [line.get_label() for line in axes[0].lines] == ["a", "b"]


def test_a_sweep_goes_on_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid: dict[str, Any] = {"max_num_batched_tokens": [16, 64], "enable_prefix_caching": [True, False]}
    fixed = {"device": "cpu", "max_model_len": 64, "max_num_seqs": 4}
    traffic, most = some(at_once(3)), 2
    ran: list[Any] = []

    def counted(*given: Any, **options: Any) -> BenchmarkResult:
        if len(ran) == most:
            raise KeyboardInterrupt
        ran.append(given)
        return run(*given, **options)

    monkeypatch.setattr(sweeping, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        sweep(MODEL, traffic, tmp_path, fixed=fixed, use_tqdm=False, **grid)
    most = 99
    table = sweep(MODEL, traffic, tmp_path, fixed=fixed, use_tqdm=False, **grid)
    assert len(ran) == 4
    assert table["max_num_batched_tokens"].tolist() == [16, 16, 64, 64]
    assert table["enable_prefix_caching"].tolist() == [True, False, True, False]
    assert (table["requests"] == 3).all()
    assert table["steps"].iloc[0] > table["steps"].iloc[2]  # a smaller budget takes more steps
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("grid", "said"), [({}, "nothing to vary"), ({"seed": 3}, "list of the values"), ({"seed": []}, "list")]
)
def test_a_sweep_over_nothing_is_refused(grid: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        sweep(MODEL, some(at_once(1)), tmp_path, **grid)


def test_what_an_engine_cannot_hold_is_refused(llm: LLM) -> None:
    with pytest.raises(ValueError, match="takes 302 tokens: raise max_model_len"):
        run(llm, drawn("long", at_once(1), Fixed(300), Fixed(2), VOCAB))


def test_arrivals_at_random_have_their_rate() -> None:
    times = poisson(4000, 20.0, seed=1)
    assert (np.diff(times) > 0).all()
    assert times[-1] == pytest.approx(200, rel=0.06)  # 4,000 gaps: the mean within 1.6 %, times 3.8
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # exponential


@pytest.mark.parametrize("make", [lambda: poisson(3, 0), lambda: at_once(0), lambda: bursts(3, 0, 1)])
def test_arrivals_that_never_come_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="use more than 0"):
        make()


def test_a_turn_repeats_all_that_was_said_before() -> None:
    traffic = conversations(1, 3, system=5, question=Fixed(4), answer=Fixed(2), vocab_size=VOCAB)
    first, second, third = traffic.prompts
    assert (len(first), len(second), len(third)) == (9, 15, 21)
    assert second[:9] == first
    assert third[:15] == second


def test_the_overhead_of_a_run_is_a_ratio_with_its_interval() -> None:
    rows, summary = overhead.measure(MODEL, overhead.Load(3, 8, 4), 3)
    assert [row["what"] for row in rows] == ["reported", "whole", "cpu"]
    assert all(0 < row["low"] <= row["ratio"] <= row["high"] for row in rows)
    assert rows[1]["ratio"] < rows[0]["ratio"]  # tables take their time
    assert summary["bare_s"] > 0
    with pytest.raises(ValueError, match="0 rounds measure nothing"):
        overhead.measure(MODEL, overhead.Load(3, 8, 4), 0)
