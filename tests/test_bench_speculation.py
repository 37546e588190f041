"""The speculation benchmark: the same outputs, ratios that follow from the times, bad names refused."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from workbench.bench import speculation
from workbench.bench.cli import main

QUICK = ["--requests", "2", "--out", "8", "--rounds", "2", "--model", "zoo/wren-1m", "--not-adaptive"]


@pytest.mark.parametrize("method", ["ngram", "suffix", "draft_model"])
def test_a_row_a_load_with_the_same_outputs(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speculation, "propose_ms", lambda rows, context: 0.0)
    file = tmp_path / "speculation.csv"
    assert main(["speculation", *QUICK, "--method", method, "-o", str(file)]) == 0
    told = capsys.readouterr().out
    assert ("propose_256x8k_ms" in told) == (method == "ngram")
    assert b"\r" not in file.read_bytes(), "lines end as those of other files here"
    with file.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["task"] for row in rows] == ["copying", "stories"]
    for row in rows:
        assert row["method"] == method
        ratios = [float(ratio) for ratio in row["all_ratios"].split()]
        assert len(ratios) == 2
        assert min(ratios) <= float(row["ratio"]) <= max(ratios)
        assert float(row["same"]) == 1
        assert float(row["draft_len"]) > 0
        assert 0 <= float(row["accepted"]) <= 1


def test_proposing_is_timed_over_rows_of_any_length() -> None:
    assert 0 < speculation.propose_ms(3, 40, steps=4) < 1e3


def test_what_cannot_be_measured_is_refused_with_what_can() -> None:
    with pytest.raises(ValueError, match="no task 'sums': choose among copying, stories"):
        main(["speculation", *QUICK, "--tasks", "sums"])
    with pytest.raises(ValueError, match="use at least 1"):
        main(["speculation", *QUICK, "--rounds", "0"])
