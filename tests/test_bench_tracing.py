"""`workbench bench tracing` runs every way of observing in every round and says their ratios."""

from __future__ import annotations

import json
import statistics

import pytest

from workbench.bench.cli import main
from workbench.bench.tracing import MODES


def test_every_way_runs_in_every_round_and_ratios_are_to_the_same_round(
    capsys: pytest.CaptureFixture,
) -> None:
    arguments = ["--requests", "2", "--tokens", "8", "--out", "4", "--rounds", "2", "--running", "4"]
    assert main(["tracing", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    rows = found["rows"]
    assert sorted((row["round"], row["mode"]) for row in rows) == sorted(
        (n, m) for n in range(2) for m in MODES
    )
    assert [row["mode"] for row in rows][:5] != [row["mode"] for row in rows][5:]  # the order turns
    for row in rows:
        (off,) = [r for r in rows if r["round"] == row["round"] and r["mode"] == "off"]
        assert row["ratio"] == pytest.approx(row["out_tokens_per_s"] / off["out_tokens_per_s"], rel=1e-3)
        assert (row["bytes"] > 0) == (row["mode"] == "record_path")
    for mode in MODES:
        ratios = [row["ratio"] for row in rows if row["mode"] == mode]
        assert found[f"{mode}_ratio"] == pytest.approx(statistics.median(ratios), rel=1e-3)
        assert found[f"step_us_4_{mode}"] > 0
    assert found["off_ratio"] == 1


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
