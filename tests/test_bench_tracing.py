"""`workbench bench tracing` runs every way of observing in every round and says their ratios."""

from __future__ import annotations

import json
import statistics

import numpy as np
import pytest

from workbench.bench.cli import main
from workbench.bench.pairs import middle
from workbench.bench.tracing import MODES


def test_every_way_runs_beside_a_run_that_nobody_observes(capsys: pytest.CaptureFixture) -> None:
    arguments = ["--requests", "2", "--tokens", "8", "--out", "4", "--rounds", "2", "--running", "4"]
    assert main(["tracing", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    rows = found["rows"]
    assert sorted((row["round"], row["mode"]) for row in rows) == sorted(
        (n, m) for n in range(2) for m in MODES
    )
    assert [row["mode"] for row in rows][:4] != [row["mode"] for row in rows][4:]  # the order turns
    for row in rows:
        assert row["ratio"] == pytest.approx(row["out_tokens_per_s"] / row["off_tokens_per_s"], rel=1e-2)
        assert (row["bytes"] > 0) == (row["mode"] == "record_path")
        assert (row["requests"], row["out"]) == (2, 4)
    for mode in MODES:
        ratios = [row["ratio"] for row in rows if row["mode"] == mode]
        assert found[f"{mode}_ratio"] == pytest.approx(statistics.median(ratios), rel=1e-3)
        low, high = found[f"{mode}_interval"]
        assert (low, high) == (min(ratios), max(ratios))  # of so few nothing else is known
        assert found[f"step_us_4_{mode}"] > 0
    assert found["step_us_4_off"] > 0


@pytest.mark.parametrize("count", [6, 7, 20, 41])
def test_the_interval_holds_the_true_median_as_often_as_it_says(count: int) -> None:
    rng = np.random.default_rng(count)
    held = 0
    for _ in range(2000):
        drawn = middle(rng.exponential(size=count).tolist())
        held += drawn.low <= np.log(2) <= drawn.high
    assert 0.94 < held / 2000 <= 1.0
    wide, many = middle(list(range(count))), middle(list(range(100 * count)))
    assert (many.high - many.low) / 100 < wide.high - wide.low


def test_the_engine_has_its_ring_again_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.bench import tracing

    engines = []
    make = tracing.LLM

    def keep(*args: object, **kwargs: object) -> object:
        engines.append(make(*args, **kwargs))
        return engines[-1]

    monkeypatch.setattr(tracing, "LLM", keep)
    tracing.measure(None, tracing.Load(1, 4, 4, 2, 0), 1)
    (llm,) = engines
    assert llm.trace.observer in llm._emit._observers
    assert len(llm.trace._scopes) == 0


def test_no_rounds_are_refused() -> None:
    from workbench.bench.tracing import Load, measure

    with pytest.raises(ValueError, match="rounds is 0"):
        measure(None, Load(1, 4, 4, 2, 0), 0)
