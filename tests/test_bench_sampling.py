"""The sampling benchmark: options the engine takes, ratios to greedy, bad names refused."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from workbench import SamplingParams
from workbench.bench import sampling
from workbench.bench.cli import main

QUICK = ["--requests", "3", "--tokens", "8", "--out", "6", "--rounds", "2", "--model", "zoo/wren-1m"]


def test_every_option_differs_from_greedy_in_what_it_is_named_after() -> None:
    greedy = SamplingParams(**sampling.OPTIONS["greedy"])
    for name, options in sampling.OPTIONS.items():
        asked = SamplingParams(**options)
        assert name == "greedy" or asked != greedy
    assert set(sampling.REACH) < {*sampling.OPTIONS, sampling.PROMPTS}


def test_a_row_an_option_with_ratios_that_follow_from_the_times(tmp_path: Path) -> None:
    file = tmp_path / "sampling.csv"
    assert main(["sampling", *QUICK, "--options", "min_p", "json", "prompt_logprobs", "-o", str(file)]) == 0
    with file.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["option"] for row in rows] == ["min_p", "json", "prompt_logprobs"]
    for row in rows:
        ratios = [float(ratio) for ratio in row["all_ratios"].split()]
        assert len(ratios) == 2
        assert min(ratios) <= float(row["ratio"]) <= max(ratios)
        assert float(row["option_ms"]) > 0
        assert row["reach"] == "", "there is nothing to reach on another device"


def test_what_cannot_be_measured_is_refused_with_what_can() -> None:
    with pytest.raises(ValueError, match="no option 'beam': choose among greedy, temperature"):
        main(["sampling", *QUICK, "--options", "beam"])
    with pytest.raises(ValueError, match="too few"):
        main(["sampling", "--requests", "2", "--tokens", "8", "--out", "2", "--model", "zoo/wren-1m"])
    with pytest.raises(ValueError, match="use at least 1"):
        main(["sampling", *QUICK, "--rounds", "0"])
