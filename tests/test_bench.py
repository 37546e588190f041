"""The benchmarks run, and say what they measured in the forms that are promised."""

from __future__ import annotations

import csv
import json

import pytest

from workbench.bench.cli import main


def last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_scheduler_prints_one_json_object_with_a_row_a_size(capsys, tmp_path):
    file = tmp_path / "rows.csv"
    assert main(["scheduler", "--running", "1", "8", "--steps", "64", "--json", "-o", str(file)]) == 0
    found = last_line(capsys)
    assert [row["running"] for row in found["rows"]] == [1, 8]
    assert all(0 < row["step_us_mean"] <= row["step_us_p99"] * 64 for row in found["rows"])
    assert found["add_us"] > 0
    with file.open() as handle:
        assert [row["running"] for row in csv.DictReader(handle)] == ["1", "8"]


def test_rows_are_appended_to_a_file_under_one_header(capsys, tmp_path):
    file = tmp_path / "rows.csv"
    for _ in range(2):
        main(["scheduler", "--running", "1", "--steps", "64", "-o", str(file)])
    lines = file.read_text().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("running,")


def test_throughput_counts_the_same_tokens_for_each_engine(capsys):
    arguments = ["--requests", "2", "--min-tokens", "4", "--max-tokens", "8", "--out", "4", "--rounds", "1"]
    assert main(["throughput", *arguments, "--engines", "workbench", "generate", "--json"]) == 0
    found = last_line(capsys)
    assert {row["engine"] for row in found["rows"]} == {"workbench", "generate"}
    for row in found["rows"]:
        assert row["out_tokens_per_s"] == pytest.approx(2 * 4 / row["seconds"], rel=0.05)
    assert found["ratio_to_better"] == pytest.approx(
        found["workbench_tokens_per_s"] / found["generate_tokens_per_s"], rel=1e-3
    )
